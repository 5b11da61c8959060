"""What a worker reports to the login server in the first process."""

import pickle
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from capport.budgets import Budgets
from capport.core.client import Peer
from capport.core.place import parse_authority
from capport.core.policy import Policy
from capport.events import EventLog
from capport.gate import Gate
from capport.linux.own_addresses import HERE as MACHINE
from capport.metrics import Metrics
from capport.policy import policy_file
from capport.service.channel import Channel, pair
from capport.service.shared_state import LoginState, Shared
from capport.service.worker_service import WorkerLogin, WorkerService
from capport.stores.memory import MemoryStore
from capport.stores.opening import open_store
from proxy.wire import until

HERE = ("127.0.0.1", 40000)
CLIENT = Peer(ip_address("192.0.2.7"))


@pytest.fixture
def ends() -> tuple[Channel, Channel]:
    worker, first = pair()
    return Channel(worker, unpickles=True), Channel(first)


def login(worker: Channel, *places: str) -> WorkerLogin:
    """Makes the login server listen at `places`; the policy says 127.0.0.1:8511."""
    policy = policy_file.parse("login_server: {listen: 127.0.0.1:8511}", "a", Path())
    now = tuple(parse_authority(place, None) for place in places)
    return WorkerLogin(
        LoginState(b"", now, signs_in_elsewhere=False, makes_links=True),
        Gate(policy, MemoryStore()),
        worker,
    )


@pytest.mark.parametrize("port", [8511, 8510])
def test_a_connection_to_the_login_server_is_announced_where_it_listens_now_and_soon(
    ends: tuple[Channel, Channel], port: int
) -> None:
    worker, first = ends
    it = login(worker, "127.0.0.1:8510")
    it.connected(HERE, ("127.0.0.1", port), CLIENT)
    it.disconnected(HERE)
    assert list(first.messages()) == [
        ["connected", ["127.0.0.1", 40000], "192.0.2.7", None],
        ["disconnected", ["127.0.0.1", 40000]],
    ]


def test_no_other_connection_is(ends: tuple[Channel, Channel]) -> None:
    worker, first = ends
    it = login(worker, "127.0.0.1:8510")
    it.connected(HERE, ("127.0.0.1", 80), CLIENT)
    it.connected(HERE, ("198.51.100.2", 8511), CLIENT)
    it.disconnected(HERE)
    assert list(first.messages()) == []


def test_what_cannot_be_announced_is_an_error(ends: tuple[Channel, Channel]) -> None:
    worker, first = ends
    first.close()
    with pytest.raises(OSError, match="says which client"):
        login(worker).connected(HERE, ("127.0.0.1", 8511), CLIENT)


async def test_the_neighbours_are_those_of_the_policy_that_came_last(
    ends: tuple[Channel, Channel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def policy(interface: str) -> Policy:
        router = f"router: {{client_interface: {interface}, origin_interface: wan}}"
        return policy_file.parse(f"login_url: http://login.example/\n{router}", "a", Path())

    worker, first = ends
    sessions = str(tmp_path / "s.db")
    with closing(open_store(sessions)):  # the first process has made it
        it = WorkerService(
            sessions,
            Shared(policy("br-lan"), None, {}),
            worker,
            EventLog(),
            machine=MACHINE,
            metrics=Metrics(),
            budgets=Budgets(),
            listen=lambda indices: None,
            ended=lambda: None,
        )
        used: list[object] = []
        monkeypatch.setattr(it.gate.neighbours, "use", used.append)
        await it.start()
        first.send("use", pickled=pickle.dumps(Shared(policy("br-guests"), None, {})))
        await until(lambda: bool(used))
        await it.stop()
        assert used == [("br-guests",)]
