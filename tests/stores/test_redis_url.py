"""Which URLs name sessions in Redis."""

import pytest

from capport.core.place import parse_authority
from capport.stores.redis_url import RedisUrl, is_redis, parse_redis_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("redis://192.0.2.5", "redis://192.0.2.5:6379/0"),
        ("redis://192.0.2.5:7000/3", "redis://192.0.2.5:7000/3"),
        ("rediss://[2001:db8::5]:7000/", "rediss://[2001:db8::5]:7000/0"),
        ("redis://a.example:1,b.example/0", "redis://a.example:1,b.example:6379/0"),
        ("redis://h/0?file=/var/lib/s.db", "redis://h:6379/0?file=/var/lib/s.db"),
    ],
)
def test_a_url_names_a_redis(text: str, url: str) -> None:
    assert str(parse_redis_url(text)) == url
    assert parse_redis_url(url) == parse_redis_url(text)


@pytest.mark.parametrize(
    "text",
    ["redis://", "redis:/h", "redis://h:0", "redis://h/x", "redis://h/0#x", "redis://h/0?file=s"],
)
def test_what_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|is neither"):
        parse_redis_url(text)


def test_the_parts_of_a_url() -> None:
    assert parse_redis_url("redis://h") == RedisUrl((parse_authority("h", 6379),))
    whole = parse_redis_url("rediss://a:1,b/7?file=/s.db")
    assert [str(place) for place in whole.places] == ["a:1", "b:6379"]
    assert (whole.database, whole.tls, whole.file) == (7, True, "/s.db")
    assert whole.server == "rediss://a:1,b:6379/7"
    assert str(whole) == "rediss://a:1,b:6379/7?file=/s.db"


def test_a_user_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="CAPPORT_REDIS_PASSWORD_FILE") as refused:
        parse_redis_url("redis://ann:secret@h?file=/s.db")
    assert "secret" not in str(refused.value)
    assert parse_redis_url("redis://h?file=/a@b.db").file == "/a@b.db"


def test_an_error_repeats_little_of_a_long_text() -> None:
    with pytest.raises(ValueError, match="redis://HOST:PORT/DB") as refused:
        parse_redis_url("x" * 200)
    assert repr("x" * 100) in str(refused.value)


@pytest.mark.parametrize(
    ("url", "names"),
    [("redis://h", True), ("rediss://h", True), ("redisx://h", False), ("sqlite:///s", False)],
)
def test_which_urls_name_redis(url: str, names: bool) -> None:
    assert is_redis(url) == names
