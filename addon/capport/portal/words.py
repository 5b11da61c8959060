"""What the login server says, in each language."""
# ruff: noqa: E501, RUF001, S106  (sentences; typographic apostrophes; the word "password")

from dataclasses import dataclass

from capport.core.negotiation import Language


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """One language's. `{name}` is filled in by `str.format`."""

    language: Language
    own_name: str  # the language's, in itself
    choose_language: str

    welcome: str
    welcome_to: str
    lead_terms: str
    lead_voucher: str
    lead_password: str
    lead_extend: str
    terms: str
    accept: str
    by_signing_in: str
    by_staying: str
    voucher: str
    voucher_hint: str
    name: str
    password: str
    go_online: str
    how_long: str
    not_encrypted: str

    wrong_voucher: str
    wrong_password: str
    too_many: str
    terms_changed: str

    online: str
    online_text: str
    onward: str
    onward_none: str
    left: str  # what stands before the time
    always_on: str
    device: str
    signed_in_with: str
    sign_out: str
    extend: str
    status: str
    come_back: str
    signed_out: str
    signed_out_text: str
    sign_in_again: str

    start_again: str
    not_found: str
    not_found_text: str
    blocked: str
    blocked_text: str
    form_over: str
    form_over_text: str
    refused: str
    refused_text: str
    unavailable: str
    unavailable_text: str
    elsewhere: str
    elsewhere_text: str

    by: dict[str, str]  # what a session was granted for: terms, voucher, password
    units: tuple[tuple[str, str], ...]  # day, hour, minute, second: one, and more
    soon: str

    def time(self, seconds: float) -> str:
        """A length of time in words, as coarse as people say it: 2 hours 5 minutes; 1 day 3 hours."""
        minutes = int(seconds // 60)
        counts = (minutes // 1440, minutes // 60 % 24, minutes % 60)
        first = next((at for at, count in enumerate(counts) if count), None)
        if first is None:
            return self.soon
        said = [
            self._count(count, at)
            for at, count in enumerate(counts)
            if count and at in (first, first + 1)
        ]
        return " ".join(said)

    def wait(self, seconds: float) -> str:
        """As `time`, but to the second where it is short."""
        return (
            self._count(max(1, round(seconds)), 3) if seconds < 59.5 else self.time(seconds + 0.5)
        )

    def _count(self, count: int, unit: int) -> str:
        return f"{count}\N{NO-BREAK SPACE}{self.units[unit][count != 1]}"


WORDS: dict[Language, Words] = {
    Language.ENGLISH: Words(
        language=Language.ENGLISH,
        own_name="English",
        choose_language="Language",
        welcome="Welcome",
        welcome_to="Welcome to {network}",
        lead_terms="One step, and you are online: please read the terms and accept them.",
        lead_voucher="Enter the code on your voucher to go online.",
        lead_password="Sign in with your name and password to go online.",
        lead_extend="You are online. To have more time, sign in once more.",
        terms="Terms of use",
        accept="Accept and go online",
        by_signing_in="By going online you accept these terms.",
        by_staying="By staying online you accept these terms.",
        voucher="Voucher code",
        voucher_hint="16 letters and digits. Capitals, spaces and hyphens do not matter.",
        name="Name",
        password="Password",
        go_online="Go online",
        how_long="Good for {time}. You can sign out at any time.",
        not_encrypted="This page is not encrypted: others on this network could read what you type.",
        wrong_voucher="This code is not valid. Please check it and try again.",
        wrong_password="That name and password do not go together. Please try again.",
        too_many="Too many attempts. Please try again in {time}.",
        terms_changed="The terms have just changed. Please read them again.",
        online="You are online",
        online_text="Everything on this device can now use the network.",
        onward="Continue to {host}",
        onward_none="You can close this page and carry on.",
        left="Time left:",
        always_on="This device always has access. There is nothing for you to do.",
        device="Device",
        signed_in_with="Sign-in",
        sign_out="Sign out",
        extend="Stay longer",
        status="Your connection",
        come_back="Come back to this page to see how much time is left, to stay longer, or to sign out.",
        signed_out="You are signed out",
        signed_out_text="This device is no longer online.",
        sign_in_again="Sign in again",
        start_again="Start again",
        not_found="There is nothing here",
        not_found_text="This page does not exist. Perhaps the address was mistyped.",
        blocked="This device is not allowed on this network",
        blocked_text="Please ask whoever runs this network.",
        form_over="This page was open for too long",
        form_over_text="Nothing has been sent. Please start again; it takes only a moment.",
        refused="That did not work",
        refused_text="This request cannot be answered. Please start again.",
        unavailable="Not possible at the moment",
        unavailable_text="You have not been signed in. Please try again in a minute.",
        elsewhere="This is not the page you asked for",
        elsewhere_text="This is the login server of the network. Please start again.",
        by={"terms": "Terms accepted", "voucher": "Voucher", "password": "Name and password"},
        units=(("day", "days"), ("hour", "hours"), ("minute", "minutes"), ("second", "seconds")),
        soon="less than a minute",
    ),
    Language.GERMAN: Words(
        language=Language.GERMAN,
        own_name="Deutsch",
        choose_language="Sprache",
        welcome="Willkommen",
        welcome_to="Willkommen bei {network}",
        lead_terms="Ein Schritt, und Sie sind online: Bitte lesen und akzeptieren Sie die Bedingungen.",
        lead_voucher="Geben Sie den Code von Ihrem Voucher ein, um online zu gehen.",
        lead_password="Melden Sie sich mit Name und Passwort an, um online zu gehen.",
        lead_extend="Sie sind online. Für mehr Zeit melden Sie sich noch einmal an.",
        terms="Nutzungsbedingungen",
        accept="Akzeptieren und online gehen",
        by_signing_in="Mit der Anmeldung akzeptieren Sie diese Bedingungen.",
        by_staying="Wenn Sie online bleiben, akzeptieren Sie diese Bedingungen.",
        voucher="Voucher-Code",
        voucher_hint="16 Buchstaben und Ziffern. Großschreibung, Leerzeichen und Bindestriche sind egal.",
        name="Name",
        password="Passwort",
        go_online="Online gehen",
        how_long="Gilt für {time}. Sie können sich jederzeit abmelden.",
        not_encrypted="Diese Seite ist nicht verschlüsselt: Andere in diesem Netzwerk könnten mitlesen.",
        wrong_voucher="Dieser Code ist nicht gültig. Bitte prüfen Sie ihn und versuchen Sie es erneut.",
        wrong_password="Name und Passwort passen nicht zusammen. Bitte versuchen Sie es erneut.",
        too_many="Zu viele Versuche. Bitte versuchen Sie es in {time} erneut.",
        terms_changed="Die Bedingungen haben sich gerade geändert. Bitte lesen Sie sie noch einmal.",
        online="Sie sind online",
        online_text="Alles auf diesem Gerät kann das Netzwerk jetzt benutzen.",
        onward="Weiter zu {host}",
        onward_none="Sie können diese Seite schließen und loslegen.",
        left="Noch",
        always_on="Dieses Gerät hat immer Zugang. Sie müssen nichts tun.",
        device="Gerät",
        signed_in_with="Anmeldung",
        sign_out="Abmelden",
        extend="Länger bleiben",
        status="Ihre Verbindung",
        come_back="Auf dieser Seite sehen Sie die verbleibende Zeit, können länger bleiben oder sich abmelden.",
        signed_out="Sie sind abgemeldet",
        signed_out_text="Dieses Gerät ist nicht mehr online.",
        sign_in_again="Wieder anmelden",
        start_again="Neu beginnen",
        not_found="Hier ist nichts",
        not_found_text="Diese Seite gibt es nicht. Vielleicht haben Sie sich bei der Adresse vertippt.",
        blocked="Dieses Gerät ist in diesem Netzwerk nicht zugelassen",
        blocked_text="Bitte wenden Sie sich an den Betreiber dieses Netzwerks.",
        form_over="Diese Seite war zu lange offen",
        form_over_text="Es wurde nichts gesendet. Bitte beginnen Sie noch einmal; es geht schnell.",
        refused="Das hat nicht geklappt",
        refused_text="Diese Anfrage kann nicht beantwortet werden. Bitte beginnen Sie noch einmal.",
        unavailable="Im Moment nicht möglich",
        unavailable_text="Sie sind nicht angemeldet. Bitte versuchen Sie es in einer Minute erneut.",
        elsewhere="Das ist nicht die Seite, die Sie aufgerufen haben",
        elsewhere_text="Dies ist der Anmeldeserver des Netzwerks. Bitte beginnen Sie noch einmal.",
        by={
            "terms": "Bedingungen akzeptiert",
            "voucher": "Voucher",
            "password": "Name und Passwort",
        },
        units=(
            ("Tag", "Tage"),
            ("Stunde", "Stunden"),
            ("Minute", "Minuten"),
            ("Sekunde", "Sekunden"),
        ),
        soon="weniger als eine Minute",
    ),
    Language.FRENCH: Words(
        language=Language.FRENCH,
        own_name="Français",
        choose_language="Langue",
        welcome="Bienvenue",
        welcome_to="Bienvenue sur {network}",
        lead_terms="Une étape et vous êtes en ligne : veuillez lire et accepter les conditions.",
        lead_voucher="Saisissez le code de votre coupon pour vous connecter.",
        lead_password="Saisissez votre nom et votre mot de passe pour vous connecter.",
        lead_extend="Vous êtes en ligne. Pour plus de temps, connectez-vous à nouveau.",
        terms="Conditions d’utilisation",
        accept="Accepter et se connecter",
        by_signing_in="En vous connectant, vous acceptez ces conditions.",
        by_staying="En restant en ligne, vous acceptez ces conditions.",
        voucher="Code du coupon",
        voucher_hint="16 lettres et chiffres. Majuscules, espaces et tirets n’ont pas d’importance.",
        name="Nom",
        password="Mot de passe",
        go_online="Se connecter",
        how_long="Valable {time}. Vous pouvez vous déconnecter à tout moment.",
        not_encrypted="Cette page n’est pas chiffrée : d’autres sur ce réseau pourraient lire ce que vous saisissez.",
        wrong_voucher="Ce code n’est pas valable. Veuillez le vérifier et réessayer.",
        wrong_password="Ce nom et ce mot de passe ne correspondent pas. Veuillez réessayer.",
        too_many="Trop de tentatives. Veuillez réessayer dans {time}.",
        terms_changed="Les conditions viennent de changer. Veuillez les relire.",
        online="Vous êtes en ligne",
        online_text="Tout sur cet appareil peut maintenant utiliser le réseau.",
        onward="Continuer vers {host}",
        onward_none="Vous pouvez fermer cette page et continuer.",
        left="Temps restant :",
        always_on="Cet appareil a toujours accès au réseau. Vous n’avez rien à faire.",
        device="Appareil",
        signed_in_with="Connexion",
        sign_out="Se déconnecter",
        extend="Rester plus longtemps",
        status="Votre connexion",
        come_back="Revenez sur cette page pour voir le temps restant, prolonger ou vous déconnecter.",
        signed_out="Vous êtes déconnecté",
        signed_out_text="Cet appareil n’est plus en ligne.",
        sign_in_again="Se reconnecter",
        start_again="Recommencer",
        not_found="Il n’y a rien ici",
        not_found_text="Cette page n’existe pas. L’adresse est peut-être mal saisie.",
        blocked="Cet appareil n’est pas autorisé sur ce réseau",
        blocked_text="Veuillez vous adresser à l’exploitant de ce réseau.",
        form_over="Cette page est restée ouverte trop longtemps",
        form_over_text="Rien n’a été envoyé. Veuillez recommencer ; cela ne prend qu’un instant.",
        refused="Cela n’a pas fonctionné",
        refused_text="Cette demande ne peut pas aboutir. Veuillez recommencer.",
        unavailable="Impossible pour le moment",
        unavailable_text="Vous n’êtes pas connecté. Veuillez réessayer dans une minute.",
        elsewhere="Ce n’est pas la page que vous avez demandée",
        elsewhere_text="Ceci est le serveur de connexion du réseau. Veuillez recommencer.",
        by={
            "terms": "Conditions acceptées",
            "voucher": "Coupon",
            "password": "Nom et mot de passe",
        },
        units=(
            ("jour", "jours"),
            ("heure", "heures"),
            ("minute", "minutes"),
            ("seconde", "secondes"),
        ),
        soon="moins d’une minute",
    ),
    Language.SPANISH: Words(
        language=Language.SPANISH,
        own_name="Español",
        choose_language="Idioma",
        welcome="Le damos la bienvenida",
        welcome_to="Le damos la bienvenida a {network}",
        lead_terms="Un paso y tendrá conexión: lea y acepte las condiciones.",
        lead_voucher="Escriba el código de su vale para conectarse.",
        lead_password="Escriba su nombre y su contraseña para conectarse.",
        lead_extend="Tiene conexión. Para más tiempo, conéctese otra vez.",
        terms="Condiciones de uso",
        accept="Aceptar y conectarse",
        by_signing_in="Al conectarse, acepta estas condiciones.",
        by_staying="Al mantener la conexión, acepta estas condiciones.",
        voucher="Código del vale",
        voucher_hint="16 letras y cifras. No importan las mayúsculas, los espacios ni los guiones.",
        name="Nombre",
        password="Contraseña",
        go_online="Conectarse",
        how_long="Válido durante {time}. Puede desconectarse cuando quiera.",
        not_encrypted="Esta página no está cifrada: otros en esta red podrían leer lo que escriba.",
        wrong_voucher="Este código no es válido. Compruébelo e inténtelo de nuevo.",
        wrong_password="El nombre y la contraseña no coinciden. Inténtelo de nuevo.",
        too_many="Demasiados intentos. Inténtelo de nuevo dentro de {time}.",
        terms_changed="Las condiciones acaban de cambiar. Léalas de nuevo.",
        online="Tiene conexión",
        online_text="Todo en este dispositivo puede usar ya la red.",
        onward="Continuar a {host}",
        onward_none="Puede cerrar esta página y seguir.",
        left="Tiempo restante:",
        always_on="Este dispositivo siempre tiene acceso. No tiene que hacer nada.",
        device="Dispositivo",
        signed_in_with="Inicio de sesión",
        sign_out="Desconectarse",
        extend="Quedarse más tiempo",
        status="Su conexión",
        come_back="Vuelva a esta página para ver el tiempo restante, prolongarlo o desconectarse.",
        signed_out="Se ha desconectado",
        signed_out_text="Este dispositivo ya no tiene conexión.",
        sign_in_again="Conectarse de nuevo",
        start_again="Empezar de nuevo",
        not_found="Aquí no hay nada",
        not_found_text="Esta página no existe. Quizá la dirección tenga una errata.",
        blocked="Este dispositivo no está autorizado en esta red",
        blocked_text="Consulte a quien administra esta red.",
        form_over="Esta página ha estado abierta demasiado tiempo",
        form_over_text="No se ha enviado nada. Empiece de nuevo; es solo un momento.",
        refused="No ha funcionado",
        refused_text="No se puede responder a esta petición. Empiece de nuevo.",
        unavailable="No es posible en este momento",
        unavailable_text="No se ha iniciado la sesión. Inténtelo de nuevo dentro de un minuto.",
        elsewhere="Esta no es la página que ha solicitado",
        elsewhere_text="Este es el servidor de acceso de la red. Empiece de nuevo.",
        by={"terms": "Condiciones aceptadas", "voucher": "Vale", "password": "Nombre y contraseña"},
        units=(("día", "días"), ("hora", "horas"), ("minuto", "minutos"), ("segundo", "segundos")),
        soon="menos de un minuto",
    ),
}
