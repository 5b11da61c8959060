"""What a portal's database says about the terms that clients accepted."""

from dataclasses import dataclass

from capport.core.client import ClientId
from capport.web.records import Records


@dataclass(frozen=True)
class Acceptance:
    """That a client accepted certain terms: when first, and when last."""

    client: ClientId
    version: str
    language: str
    first: float
    last: float


def acceptances(records: Records) -> list[Acceptance]:
    """All acceptances, the oldest first."""
    with records.database.current() as db:
        return [
            Acceptance(*row) for row in db.execute("SELECT * FROM accepted ORDER BY first, client")
        ]


def text_of_terms(records: Records, version: str, language: str) -> str:
    """The text of the terms with this version and language."""
    question = "SELECT text FROM terms WHERE version = ? AND language = ?"
    with records.database.current() as db:
        ((text,),) = db.execute(question, (version, language))
        return str(text)
