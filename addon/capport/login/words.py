"""The texts of the login server's pages, and of printed vouchers, in each language."""
# ruff: noqa: E501, RUF001, S106  (sentences; typographic apostrophes; the word "password")

from dataclasses import dataclass
from math import ceil

from capport.core.negotiation import Language


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The texts in one language. `str.format` fills in `{name}`."""

    language: Language
    own_name: str  # the name of the language, in that language
    choose_language: str

    welcome: str
    welcome_to: str
    lead_terms: str
    lead_voucher: str
    lead_password: str
    more_terms: str
    more_voucher: str
    more_password: str
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

    no_code: str
    wrong_voucher: str
    no_longer: str
    wrong_password: str
    too_many: str
    terms_changed: str

    online: str
    online_text: str
    onward: str
    onward_none: str
    left: str  # the text before the time
    idle: str
    always_on: str
    device: str
    signed_in_with: str
    sign_out: str
    extend: str
    status: str
    come_back: str  # `{place}` becomes a link
    over: str
    signed_out: str
    signed_out_text: str
    sign_in_again: str

    start_again: str
    not_found: str
    not_found_text: str
    blocked: str
    blocked_text: str
    indistinct: str
    indistinct_text: str
    form_over: str
    form_over_text: str
    refused: str
    refused_text: str
    proxied: str
    proxied_text: str
    no_mac: str
    no_mac_text: str
    full: str
    full_text: str
    unavailable: str
    unavailable_text: str
    elsewhere: str
    elsewhere_text: str

    sheet_time: str
    sheet_device: str
    sheet_devices: str
    sheet_by: str
    sheet_how: str
    sheet_opens: str
    sheet_number: str

    by: dict[str, str]  # by condition (terms, voucher, password): how the client signed in
    units: tuple[tuple[str, str], ...]  # day, hour, minute, second: singular and plural
    soon: str

    def time(self, seconds: float) -> str:
        """A length of time in words, in at most two units: 2 hours 5 minutes; 1 day 3 hours."""
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

    def rounded(self, seconds: float) -> str:
        """As `time`, to the nearest minute, so that 7:59:59 left is shown as 8 hours."""
        return self.time(seconds if seconds < 60 else seconds + 30)

    def wait(self, seconds: float) -> str:
        """How long to wait: in seconds below a minute, else rounded up, so that nobody tries too soon."""
        whole = max(1, round(seconds))
        return self._count(whole, 3) if whole < 60 else self.time(ceil(whole / 60) * 60)

    def _count(self, count: int, unit: int) -> str:
        return f"{count}\N{NO-BREAK SPACE}{self.units[unit][count != 1]}"


WORDS: dict[Language, Words] = {
    Language.ENGLISH: Words(
        language=Language.ENGLISH,
        own_name="English",
        choose_language="Language",
        welcome="Welcome",
        welcome_to="Welcome to {network}",
        lead_terms="Please read and accept the terms to go online.",
        lead_voucher="Enter the code on your voucher to go online.",
        lead_password="Sign in with your name and password to go online.",
        more_terms="You have {left} left. Accept the terms again to get {time} from now.",
        more_voucher="You have {left} left. A new voucher starts at once and replaces that time.",
        more_password="You have {left} left. Sign in again to get {time} from now.",
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
        no_code="This is not a voucher code: a code has 16 letters and digits. Please check it.",
        wrong_voucher="This code is not valid, or it has already been used. Please check it, or ask for a new one.",
        no_longer="This voucher does not give you more time than you have left. It was not used.",
        wrong_password="The name or the password is wrong. Please try again.",
        too_many="Too many attempts, so this one was not checked. Please wait {time}, then try again.",
        terms_changed="The terms have just changed. Please read them again.",
        online="You are online",
        online_text="Everything on this device can now use the network.",
        onward="Continue to {host}",
        onward_none="You can close this page now.",
        left="Time left:",
        idle="If this device is not used for {time}, you have to sign in again.",
        always_on="This device always has access. There is nothing for you to do.",
        device="Device",
        signed_in_with="Sign-in",
        sign_out="Sign out",
        extend="Stay longer",
        status="Your connection",
        come_back="To see how much time is left, to stay longer or to sign out, come back to {place}.",
        over="Your session has ended",
        signed_out="You are signed out",
        signed_out_text="This device is no longer online.",
        sign_in_again="Sign in again",
        start_again="Start again",
        not_found="There is nothing here",
        not_found_text="This page does not exist. Please check the address.",
        blocked="This device is not allowed on this network",
        blocked_text="Please ask whoever runs this network.",
        indistinct="This device cannot be distinguished from others",
        indistinct_text="Another device may have the same address on this network. Please disconnect from the network, connect again, and then start again.",
        form_over="This page is out of date",
        form_over_text="Nothing was changed. Please start again; it takes only a moment. If this happens every time, allow cookies for this page.",
        refused="That did not work",
        refused_text="This request cannot be answered. Please start again.",
        proxied="This device cannot be distinguished from others",
        proxied_text="Your device uses a proxy, and behind a proxy all devices look the same. Please open this page without the proxy.",
        no_mac="This device is not recognised yet",
        no_mac_text="The network does not know the hardware address of this device yet. Please try again in a moment.",
        full="This network is full",
        full_text="This network cannot take more devices at the moment. Please try again in a few minutes.",
        unavailable="Not possible at the moment",
        unavailable_text="Something is not working here. Please try again in a minute; if that does not help, tell whoever runs this network.",
        elsewhere="This is not the page you asked for",
        elsewhere_text="This is the sign-in page of the network. Please start again.",
        sheet_time="{time} from the first use",
        sheet_device="for 1 device",
        sheet_devices="for {count} devices",
        sheet_by="first use by {date}",
        sheet_how="Join this network, open {place} and enter the code.",
        sheet_opens="Join this network and enter the code on the page that opens.",
        sheet_number="No. {number}",
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
        lead_terms="Bitte lesen und akzeptieren Sie die Bedingungen, um online zu gehen.",
        lead_voucher="Geben Sie den Code von Ihrem Voucher ein, um online zu gehen.",
        lead_password="Melden Sie sich mit Name und Passwort an, um online zu gehen.",
        more_terms="Sie haben noch {left}. Akzeptieren Sie die Bedingungen noch einmal, dann haben Sie ab jetzt {time}.",
        more_voucher="Sie haben noch {left}. Ein neuer Voucher beginnt sofort und ersetzt diese Zeit.",
        more_password="Sie haben noch {left}. Melden Sie sich noch einmal an, dann haben Sie ab jetzt {time}.",
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
        no_code="Das ist kein Voucher-Code: Ein Code hat 16 Buchstaben und Ziffern. Bitte prüfen Sie ihn.",
        wrong_voucher="Dieser Code ist nicht gültig oder wurde schon benutzt. Bitte prüfen Sie ihn oder fragen Sie nach einem neuen.",
        no_longer="Dieser Voucher gibt Ihnen nicht mehr Zeit, als Sie noch haben. Er wurde nicht benutzt.",
        wrong_password="Der Name oder das Passwort ist falsch. Bitte versuchen Sie es erneut.",
        too_many="Zu viele Versuche, deshalb wurde dieser nicht geprüft. Bitte warten Sie {time} und versuchen Sie es dann erneut.",
        terms_changed="Die Bedingungen haben sich gerade geändert. Bitte lesen Sie sie noch einmal.",
        online="Sie sind online",
        online_text="Alles auf diesem Gerät kann das Netzwerk jetzt benutzen.",
        onward="Weiter zu {host}",
        onward_none="Sie können diese Seite jetzt schließen.",
        left="Noch",
        idle="Wenn dieses Gerät {time} lang nicht benutzt wird, müssen Sie sich neu anmelden.",
        always_on="Dieses Gerät hat immer Zugang. Sie müssen nichts tun.",
        device="Gerät",
        signed_in_with="Anmeldung",
        sign_out="Abmelden",
        extend="Länger bleiben",
        status="Ihre Verbindung",
        come_back="Die verbleibende Zeit sehen, länger bleiben oder sich abmelden können Sie unter {place}.",
        over="Ihre Sitzung ist beendet",
        signed_out="Sie sind abgemeldet",
        signed_out_text="Dieses Gerät ist nicht mehr online.",
        sign_in_again="Wieder anmelden",
        start_again="Neu beginnen",
        not_found="Hier ist nichts",
        not_found_text="Diese Seite gibt es nicht. Bitte prüfen Sie die Adresse.",
        blocked="Dieses Gerät ist in diesem Netzwerk nicht zugelassen",
        blocked_text="Bitte wenden Sie sich an den Betreiber dieses Netzwerks.",
        indistinct="Dieses Gerät ist von anderen nicht zu unterscheiden",
        indistinct_text="Vielleicht hat ein anderes Gerät in diesem Netzwerk dieselbe Adresse. Bitte trennen Sie die Verbindung zum Netzwerk, verbinden Sie sich neu und beginnen Sie dann noch einmal.",
        form_over="Diese Seite ist veraltet",
        form_over_text="Es wurde nichts geändert. Bitte beginnen Sie noch einmal; es geht schnell. Wenn das jedes Mal geschieht, erlauben Sie Cookies für diese Seite.",
        refused="Das hat nicht geklappt",
        refused_text="Diese Anfrage kann nicht beantwortet werden. Bitte beginnen Sie noch einmal.",
        proxied="Dieses Gerät ist von anderen nicht zu unterscheiden",
        proxied_text="Ihr Gerät benutzt einen Proxy, und hinter einem Proxy sehen alle Geräte gleich aus. Bitte öffnen Sie diese Seite ohne den Proxy.",
        no_mac="Dieses Gerät wird noch nicht erkannt",
        no_mac_text="Das Netzwerk kennt die Hardware-Adresse dieses Geräts noch nicht. Bitte versuchen Sie es gleich noch einmal.",
        full="Dieses Netzwerk ist voll",
        full_text="Dieses Netzwerk kann im Moment keine weiteren Geräte aufnehmen. Bitte versuchen Sie es in ein paar Minuten erneut.",
        unavailable="Im Moment nicht möglich",
        unavailable_text="Hier funktioniert etwas nicht. Bitte versuchen Sie es in einer Minute erneut; wenn das nicht hilft, sagen Sie dem Betreiber dieses Netzwerks Bescheid.",
        elsewhere="Das ist nicht die Seite, die Sie aufgerufen haben",
        elsewhere_text="Dies ist die Anmeldeseite des Netzwerks. Bitte beginnen Sie noch einmal.",
        sheet_time="{time} ab der ersten Benutzung",
        sheet_device="für 1 Gerät",
        sheet_devices="für {count} Geräte",
        sheet_by="erste Benutzung bis {date}",
        sheet_how="Mit diesem Netzwerk verbinden, {place} öffnen und den Code eingeben.",
        sheet_opens="Mit diesem Netzwerk verbinden und den Code auf der Seite eingeben, die sich öffnet.",
        sheet_number="Nr. {number}",
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
        lead_terms="Veuillez lire et accepter les conditions pour vous connecter.",
        lead_voucher="Saisissez le code de votre coupon pour vous connecter.",
        lead_password="Saisissez votre nom et votre mot de passe pour vous connecter.",
        more_terms="Il vous reste {left}. Acceptez à nouveau les conditions pour avoir {time} à partir de maintenant.",
        more_voucher="Il vous reste {left}. Un nouveau coupon commence aussitôt et remplace ce temps.",
        more_password="Il vous reste {left}. Connectez-vous à nouveau pour avoir {time} à partir de maintenant.",
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
        no_code="Ce n’est pas un code de coupon : un code a 16 lettres et chiffres. Veuillez le vérifier.",
        wrong_voucher="Ce code n’est pas valable, ou il a déjà été utilisé. Veuillez le vérifier ou en demander un nouveau.",
        no_longer="Ce coupon ne vous donne pas plus de temps qu’il ne vous en reste. Il n’a pas été utilisé.",
        wrong_password="Le nom ou le mot de passe est incorrect. Veuillez réessayer.",
        too_many="Trop de tentatives : celle-ci n’a pas été vérifiée. Veuillez patienter {time}, puis réessayer.",
        terms_changed="Les conditions viennent de changer. Veuillez les relire.",
        online="Vous êtes en ligne",
        online_text="Tout sur cet appareil peut maintenant utiliser le réseau.",
        onward="Continuer vers {host}",
        onward_none="Vous pouvez maintenant fermer cette page.",
        left="Temps restant :",
        idle="Si cet appareil reste inutilisé pendant {time}, il faudra vous reconnecter.",
        always_on="Cet appareil a toujours accès au réseau. Vous n’avez rien à faire.",
        device="Appareil",
        signed_in_with="Connexion",
        sign_out="Se déconnecter",
        extend="Rester plus longtemps",
        status="Votre connexion",
        come_back="Pour voir le temps restant, prolonger ou vous déconnecter, revenez sur {place}.",
        over="Votre session est terminée",
        signed_out="Vous êtes déconnecté",
        signed_out_text="Cet appareil n’est plus en ligne.",
        sign_in_again="Se reconnecter",
        start_again="Recommencer",
        not_found="Il n’y a rien ici",
        not_found_text="Cette page n’existe pas. Veuillez vérifier l’adresse.",
        blocked="Cet appareil n’est pas autorisé sur ce réseau",
        blocked_text="Veuillez vous adresser à l’exploitant de ce réseau.",
        indistinct="Cet appareil ne peut pas être distingué d’un autre",
        indistinct_text="Un autre appareil a peut-être la même adresse sur ce réseau. Veuillez vous déconnecter du réseau, vous y reconnecter, puis recommencer.",
        form_over="Cette page n’est plus à jour",
        form_over_text="Rien n’a été modifié. Veuillez recommencer ; cela ne prend qu’un instant. Si cela se répète, autorisez les cookies pour cette page.",
        refused="Cela n’a pas fonctionné",
        refused_text="Cette demande ne peut pas aboutir. Veuillez recommencer.",
        proxied="Cet appareil ne se distingue pas des autres",
        proxied_text="Votre appareil utilise un proxy, et derrière un proxy tous les appareils se ressemblent. Veuillez ouvrir cette page sans le proxy.",
        no_mac="Cet appareil n’est pas encore reconnu",
        no_mac_text="Le réseau ne connaît pas encore l’adresse matérielle de cet appareil. Veuillez réessayer dans un instant.",
        full="Ce réseau est complet",
        full_text="Ce réseau ne peut pas accueillir d’autres appareils pour le moment. Veuillez réessayer dans quelques minutes.",
        unavailable="Impossible pour le moment",
        unavailable_text="Quelque chose ne fonctionne pas ici. Veuillez réessayer dans une minute ; si cela ne suffit pas, prévenez l’exploitant de ce réseau.",
        elsewhere="Ce n’est pas la page que vous avez demandée",
        elsewhere_text="Ceci est la page de connexion du réseau. Veuillez recommencer.",
        sheet_time="{time} à compter de la première utilisation",
        sheet_device="pour 1 appareil",
        sheet_devices="pour {count} appareils",
        sheet_by="première utilisation jusqu’au {date}",
        sheet_how="Rejoignez ce réseau, ouvrez {place} et saisissez le code.",
        sheet_opens="Rejoignez ce réseau et saisissez le code sur la page qui s’ouvre.",
        sheet_number="N° {number}",
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
        lead_terms="Lea y acepte las condiciones para conectarse.",
        lead_voucher="Escriba el código de su vale para conectarse.",
        lead_password="Escriba su nombre y su contraseña para conectarse.",
        more_terms="Tiempo restante: {left}. Acepte las condiciones otra vez para tener {time} a partir de ahora.",
        more_voucher="Tiempo restante: {left}. Un vale nuevo empieza enseguida y sustituye ese tiempo.",
        more_password="Tiempo restante: {left}. Conéctese otra vez para tener {time} a partir de ahora.",
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
        no_code="No es un código de vale: un código tiene 16 letras y cifras. Compruébelo.",
        wrong_voucher="Este código no es válido o ya se ha usado. Compruébelo o pida uno nuevo.",
        no_longer="Este vale no le da más tiempo del que le queda. No se ha usado.",
        wrong_password="El nombre o la contraseña no es correcto. Inténtelo de nuevo.",
        too_many="Demasiados intentos: este no se ha comprobado. Espere {time} e inténtelo de nuevo.",
        terms_changed="Las condiciones acaban de cambiar. Léalas de nuevo.",
        online="Tiene conexión",
        online_text="Todo en este dispositivo puede usar ya la red.",
        onward="Continuar a {host}",
        onward_none="Ya puede cerrar esta página.",
        left="Tiempo restante:",
        idle="Si este dispositivo no se usa durante {time}, tendrá que conectarse de nuevo.",
        always_on="Este dispositivo siempre tiene acceso. No tiene que hacer nada.",
        device="Dispositivo",
        signed_in_with="Inicio de sesión",
        sign_out="Desconectarse",
        extend="Quedarse más tiempo",
        status="Su conexión",
        come_back="Para ver el tiempo restante, prolongarlo o desconectarse, vuelva a {place}.",
        over="Su sesión ha terminado",
        signed_out="Se ha desconectado",
        signed_out_text="Este dispositivo ya no tiene conexión.",
        sign_in_again="Conectarse de nuevo",
        start_again="Empezar de nuevo",
        not_found="Aquí no hay nada",
        not_found_text="Esta página no existe. Compruebe la dirección.",
        blocked="Este dispositivo no está autorizado en esta red",
        blocked_text="Consulte a quien administra esta red.",
        indistinct="Este dispositivo no se puede distinguir de otro",
        indistinct_text="Es posible que otro dispositivo tenga la misma dirección en esta red. Desconéctese de la red, vuelva a conectarse y empiece de nuevo.",
        form_over="Esta página ya no está al día",
        form_over_text="No se ha cambiado nada. Empiece de nuevo; es solo un momento. Si ocurre cada vez, permita las cookies para esta página.",
        refused="No ha funcionado",
        refused_text="No se puede responder a esta petición. Empiece de nuevo.",
        proxied="Este dispositivo no se distingue de otros",
        proxied_text="Su dispositivo usa un proxy, y detrás de un proxy todos los dispositivos parecen iguales. Abra esta página sin el proxy.",
        no_mac="Este dispositivo aún no se reconoce",
        no_mac_text="La red aún no conoce la dirección física de este dispositivo. Inténtelo de nuevo dentro de un momento.",
        full="Esta red está completa",
        full_text="Esta red no puede admitir más dispositivos en este momento. Inténtelo de nuevo dentro de unos minutos.",
        unavailable="No es posible en este momento",
        unavailable_text="Algo no funciona aquí. Inténtelo de nuevo dentro de un minuto; si no sirve, avise a quien administra esta red.",
        elsewhere="Esta no es la página que ha solicitado",
        elsewhere_text="Esta es la página de acceso de la red. Empiece de nuevo.",
        sheet_time="{time} desde el primer uso",
        sheet_device="para 1 dispositivo",
        sheet_devices="para {count} dispositivos",
        sheet_by="primer uso hasta el {date}",
        sheet_how="Conéctese a esta red, abra {place} y escriba el código.",
        sheet_opens="Conéctese a esta red y escriba el código en la página que se abre.",
        sheet_number="N.º {number}",
        by={"terms": "Condiciones aceptadas", "voucher": "Vale", "password": "Nombre y contraseña"},
        units=(("día", "días"), ("hora", "horas"), ("minuto", "minutos"), ("segundo", "segundos")),
        soon="menos de un minuto",
    ),
}
