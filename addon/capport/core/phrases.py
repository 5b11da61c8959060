"""The sentences of the replies, in each language.

Units of time are words, because a screen reader reads "s" as a letter. `str.format` fills in
`{name}`; it does not interpret braces in the text that it fills in.
"""

# ruff: noqa: RUF001 (the apostrophe of French)

from dataclasses import dataclass

from capport.core.negotiation import Language


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrases:
    """The sentences in one language."""

    second: str
    seconds: str

    # 511, as a page
    sign_in: str
    sign_in_named: str
    before_use: str
    not_the_origin: str
    link: str
    taken_now: str
    taken_later: str
    # 511, in a sentence
    sign_in_at: str
    sign_in_at_named: str
    # 511, to a blocked client
    not_allowed: str
    ask_operator: str

    # 428
    precondition_required: str
    be_conditional: str
    how_to_resubmit: str
    how_to_resubmit_a_copy: str

    # 429
    too_many_requests: str
    too_many_from_you: str
    limit: str
    try_again: str

    # 431
    fields_too_large: str
    field_too_large: str
    a_field_too_large: str
    all_too_large: str
    make_smaller: str

    def time(self, seconds: float) -> str:
        """`seconds` in words: 1 second, 2.5 seconds."""
        number = f"{seconds:.3f}".rstrip("0").rstrip(".")
        return f"{number} {self.second if number == '1' else self.seconds}"


PHRASES: dict[Language, Phrases] = {
    Language.ENGLISH: Phrases(
        second="second",
        seconds="seconds",
        sign_in="Sign in to this network",
        sign_in_named="Sign in to {network}",
        before_use="You need to sign in before you can use this network.",
        not_the_origin=(
            "This answer comes from the network you are using, not from the site you asked for."
        ),
        link="Go to the sign-in page",
        taken_now="You are being taken there now.",
        taken_later="You will be taken there in {time}.",
        sign_in_at="Sign in at {url} to use this network.",
        sign_in_at_named="Sign in at {url} to use the network “{network}”.",
        not_allowed="This device is not allowed on this network",
        ask_operator="Please ask the operator of this network.",
        precondition_required="Precondition required",
        be_conditional=(
            "This request has to be conditional, so that it cannot undo a change made in the"
            " meantime."
        ),
        how_to_resubmit=(
            "GET the resource, then send the request again with If-Match and the ETag you got, or"
            " with If-Unmodified-Since and its Last-Modified; with If-None-Match: * if the resource"
            " must not exist yet; in WebDAV also with If and the token of a LOCK."
        ),
        how_to_resubmit_a_copy=(
            "Send it again with Overwrite: F, if nothing may be at the destination yet, or with If"
            " and the ETag or the lock token of the destination."
        ),
        too_many_requests="Too many requests",
        too_many_from_you="This device has sent too many requests.",
        limit="This network allows {count} requests in {time}.",
        try_again="Try again in {time}.",
        fields_too_large="Header fields too large",
        field_too_large="The header field “{field}” of this request is too large.",
        a_field_too_large="A header field of this request is too large.",
        all_too_large="The header fields of this request are too large, taken together.",
        make_smaller="Send it again with less in its header fields.",
    ),
    Language.GERMAN: Phrases(
        second="Sekunde",
        seconds="Sekunden",
        sign_in="In diesem Netzwerk anmelden",
        sign_in_named="Bei {network} anmelden",
        before_use="Bevor Sie dieses Netzwerk nutzen können, müssen Sie sich anmelden.",
        not_the_origin=(
            "Diese Antwort kommt von dem Netzwerk, das Sie benutzen, nicht von der Website, die"
            " Sie aufgerufen haben."
        ),
        link="Zur Anmeldung",
        taken_now="Sie werden jetzt dorthin weitergeleitet.",
        taken_later="Sie werden in {time} dorthin weitergeleitet.",
        sign_in_at="Melden Sie sich unter {url} an, um dieses Netzwerk zu nutzen.",
        sign_in_at_named="Melden Sie sich unter {url} an, um das Netzwerk „{network}“ zu nutzen.",
        not_allowed="Dieses Gerät ist in diesem Netzwerk nicht zugelassen",
        ask_operator="Bitte wenden Sie sich an den Betreiber dieses Netzwerks.",
        precondition_required="Vorbedingung erforderlich",
        be_conditional=(
            "Diese Anfrage muss an eine Bedingung geknüpft sein, damit sie keine zwischenzeitliche"
            " Änderung überschreibt."
        ),
        how_to_resubmit=(
            "Rufen Sie die Ressource mit GET ab und senden Sie die Anfrage erneut, mit If-Match und"
            " dem erhaltenen ETag oder mit If-Unmodified-Since und dem erhaltenen Last-Modified;"
            " mit If-None-Match: *, wenn die Ressource noch nicht vorhanden sein darf; bei WebDAV"
            " auch mit If und dem Token eines LOCK."
        ),
        how_to_resubmit_a_copy=(
            "Senden Sie sie erneut, mit Overwrite: F, wenn am Ziel noch nichts vorhanden sein darf,"
            " oder mit If und dem ETag oder dem Lock-Token des Ziels."
        ),
        too_many_requests="Zu viele Anfragen",
        too_many_from_you="Dieses Gerät hat zu viele Anfragen gesendet.",
        limit="Dieses Netzwerk erlaubt {count} Anfragen in {time}.",
        try_again="Versuchen Sie es in {time} erneut.",
        fields_too_large="Header-Felder zu groß",
        field_too_large="Das Header-Feld „{field}“ dieser Anfrage ist zu groß.",
        a_field_too_large="Ein Header-Feld dieser Anfrage ist zu groß.",
        all_too_large="Die Header-Felder dieser Anfrage sind zusammen zu groß.",
        make_smaller="Senden Sie sie mit kürzeren Header-Feldern erneut.",
    ),
    Language.FRENCH: Phrases(
        second="seconde",
        seconds="secondes",
        sign_in="Se connecter à ce réseau",
        sign_in_named="Se connecter à {network}",
        before_use="Vous devez vous identifier avant de pouvoir utiliser ce réseau.",
        not_the_origin=(
            "Cette réponse provient du réseau que vous utilisez, et non du site que vous avez"
            " demandé."
        ),
        link="Aller à la page de connexion",
        taken_now="Elle s’ouvre maintenant.",
        taken_later="Elle s’ouvrira dans {time}.",
        sign_in_at="Identifiez-vous sur {url} pour utiliser ce réseau.",
        sign_in_at_named="Identifiez-vous sur {url} pour utiliser le réseau « {network} ».",
        not_allowed="Cet appareil n’est pas autorisé sur ce réseau",
        ask_operator="Veuillez vous adresser à l’exploitant de ce réseau.",
        precondition_required="Condition préalable requise",
        be_conditional=(
            "Cette requête doit être conditionnelle, afin de ne pas écraser une modification faite"
            " entre-temps."
        ),
        how_to_resubmit=(
            "Lisez la ressource avec GET, puis renvoyez la requête avec If-Match et l’ETag reçu, ou"
            " avec If-Unmodified-Since et le Last-Modified reçu ; avec If-None-Match: * si la"
            " ressource ne doit pas encore exister ; en WebDAV aussi avec If et le jeton d’un LOCK."
        ),
        how_to_resubmit_a_copy=(
            "Renvoyez-la avec Overwrite: F si la destination ne doit pas encore exister, ou avec If"
            " et l’ETag ou le jeton de verrou de la destination."
        ),
        too_many_requests="Trop de requêtes",
        too_many_from_you="Cet appareil a envoyé trop de requêtes.",
        limit="Ce réseau autorise {count} requêtes en {time}.",
        try_again="Réessayez dans {time}.",
        fields_too_large="Champs d’en-tête trop volumineux",
        field_too_large="Le champ d’en-tête « {field} » de cette requête est trop volumineux.",
        a_field_too_large="Un champ d’en-tête de cette requête est trop volumineux.",
        all_too_large="Les champs d’en-tête de cette requête sont trop volumineux au total.",
        make_smaller="Renvoyez-la avec des champs d’en-tête plus courts.",
    ),
    Language.SPANISH: Phrases(
        second="segundo",
        seconds="segundos",
        sign_in="Iniciar sesión en esta red",
        sign_in_named="Iniciar sesión en {network}",
        before_use="Debe iniciar sesión antes de poder usar esta red.",
        not_the_origin=(
            "Esta respuesta procede de la red que está usando, no del sitio que ha solicitado."
        ),
        link="Ir a la página de inicio de sesión",
        taken_now="Se abrirá ahora mismo.",
        taken_later="Se abrirá dentro de {time}.",
        sign_in_at="Inicie sesión en {url} para usar esta red.",
        sign_in_at_named="Inicie sesión en {url} para usar la red «{network}».",
        not_allowed="Este dispositivo no está autorizado en esta red",
        ask_operator="Consulte a quien administra esta red.",
        precondition_required="Se requiere una condición previa",
        be_conditional=(
            "Esta solicitud debe ser condicional, para que no deshaga un cambio hecho entretanto."
        ),
        how_to_resubmit=(
            "Lea el recurso con GET y vuelva a enviar la solicitud con If-Match y el ETag recibido,"
            " o con If-Unmodified-Since y el Last-Modified recibido; con If-None-Match: * si el"
            " recurso aún no debe existir; en WebDAV también con If y el token de un LOCK."
        ),
        how_to_resubmit_a_copy=(
            "Vuelva a enviarla con Overwrite: F si el destino aún no debe existir, o con If y el"
            " ETag o el token de bloqueo del destino."
        ),
        too_many_requests="Demasiadas solicitudes",
        too_many_from_you="Este dispositivo ha enviado demasiadas solicitudes.",
        limit="Esta red permite {count} solicitudes en {time}.",
        try_again="Vuelva a intentarlo dentro de {time}.",
        fields_too_large="Campos de cabecera demasiado grandes",
        field_too_large="El campo de cabecera «{field}» de esta solicitud es demasiado grande.",
        a_field_too_large="Un campo de cabecera de esta solicitud es demasiado grande.",
        all_too_large="Los campos de cabecera de esta solicitud son demasiado grandes en conjunto.",
        make_smaller="Vuelva a enviarla con campos de cabecera más cortos.",
    ),
}
