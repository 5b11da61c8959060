"""A session in a store, without a gate."""

from capport import clock
from capport.core.client import ClientId, parse_client_id
from capport.core.session import Session
from capport.stores.memory import MemoryStore


def grant(store: MemoryStore, who: str, seconds: float) -> ClientId:
    client, now = parse_client_id(who), clock.now()
    store.put(Session(client, now, now + seconds, None, last_seen=now))
    return client
