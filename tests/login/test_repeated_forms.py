"""Answers to forms are kept for a while, and only a bounded number of them."""

from capport.login.repeated_forms import KEPT, MOST, Forms, Outcome


async def test_as_many_answers_are_kept_as_fit_for_as_long_as_a_link_holds() -> None:
    forms, asked = Forms(), list[bytes]()

    async def send(form: bytes, now: float) -> None:
        async def answer() -> Outcome:
            asked.append(form)
            return Outcome("/welcome")

        assert (await forms.once(form, now, answer)).path == "/welcome"

    for number in range(MOST + 1):
        await send(b"%d" % number, 0.0)
    asked.clear()
    await send(b"1", 1.0)
    assert asked == []
    await send(b"0", 1.0)
    assert asked == [b"0"]
    await send(b"new", KEPT + 0.5)
    await send(b"0", KEPT + 0.5)
    await send(b"2", KEPT + 0.5)
    assert asked == [b"0", b"new", b"2"]
