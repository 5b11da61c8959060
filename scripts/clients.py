"""Writes addon/capport/testing/CLIENTS.md: what clients do behind each kind of portal.

Run it by hand, as root, with the programs below installed. It leaves out
those that are missing, and names them.
What comes from PyPI and npm is put into .cache/clients. It takes a quarter of an hour.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PAGE = CHECKOUT / "addon" / "capport" / "testing" / "CLIENTS.md"
CACHE = CHECKOUT / ".cache" / "clients"
PYTHON = str(CACHE / "venv" / "bin" / "python")
FROM_PYPI = ("aiohttp", "httpie", "httpx", "requests", "urllib3")
FROM_NPM = ("axios", "axios-retry", "got")
PATIENCE = 8  # seconds
PLAIN = ("511", "redirect", "page", "script", "silent", "dns-lie", "reset")
SECURE = ("511", "forged-tls", "silent", "reset")


@dataclass(frozen=True, slots=True)
class Client:
    """A client, how it says its version, and how it asks for `{url}`.

    A program says by its exit status whether it got what it asked for. A library prints `=> ` and
    the status that it returned, or the error that it raised.
    """

    name: str
    version: Sequence[str]
    ask: Sequence[str]


def program(name: str, command: str, version: str = "") -> Client:
    words = command.split()
    return Client(name, (version or f"{words[0]} --version").split(), words)


def of_python(package: str, status: str, before: str = "") -> Client:
    script = f"import sys, {package}\nurl = sys.argv[1]\n{before}try:\n    print('=>', {status})\n"
    script += "except Exception as error:\n    print('=>', type(error).__name__)\n"
    says = f"import sys, {package} as it; print(getattr(it, '__version__', sys.version.split()[0]))"
    return Client(f"Python {package}", (PYTHON, "-c", says), (PYTHON, "-c", script, "{url}"))


def of_node(package: str, asked: str, *, built_in: bool = False) -> Client:
    script = f"""
        import {{ createRequire }} from "node:module";
        const need = createRequire("{CACHE}/");
        const url = process.argv.at(-1);
        try {{ console.log("=>", (await ({asked})).status); }}
        catch (error) {{
            console.log("=>", error.response?.status ?? error.cause?.code ?? error.code);
        }}
        process.exit(0);
    """
    says = (
        "process.version"
        if built_in
        else f"require('{CACHE}/node_modules/{package}/package').version"
    )
    run = ("node", "--input-type=module", "-e", script, "{url}")
    return Client(f"Node {package}", ("node", "-p", says), run)


FETCH = """async def fetch():
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status
import asyncio
"""
RETRY = "(need('axios-retry').default(need('axios')), need('axios').get(url))"
LWP = """
$a = LWP::UserAgent->new->get(shift);
print "=> ", $a->header("Client-Warning") // $a->code, chr(10);
"""
RUBY = "begin; a = Net::HTTP.get_response(URI(ARGV[0])).code; rescue => e; a = e.class; end"
PHP = """
$a = "- error";
@file_get_contents($argv[1]);
foreach ($http_response_header ?? [] as $h) if (!strncmp($h, "HTTP/", 5)) $a = $h;
echo "=> ", explode(" ", $a)[1], PHP_EOL;
"""
GO = """package main
import ("fmt"; "net/http"; "os")
func main() {
    answer, err := http.Get(os.Args[1])
    if err != nil { fmt.Println("=> error"); return }
    fmt.Println("=>", answer.StatusCode)
}
"""
PIP = f"{PYTHON} -m pip --isolated download --no-cache-dir -q -i {{url}}simple capport-example"
NPM = "npm view --fetch-retry-mintimeout 500 --registry {url} capport-example"
CLIENTS = (
    program("curl", "curl -sS -o out {url}"),
    program("curl -f", "curl -sSf -o out {url}"),
    program("curl -fL --retry 3", "curl -sSfL --retry 3 -o out {url}"),
    program("wget", "wget -q -O out {url}"),
    program("wget2", "wget2 -q -O out {url}"),
    program("aria2c", "aria2c -q --allow-overwrite -o out {url}"),
    program(
        "HTTPie --check-status",
        f"{PYTHON} -m httpie --check-status --ignore-stdin -q {{url}}",
        f"{PYTHON} -m httpie --version",
    ),
    program("lynx -dump", "lynx -dump {url}", "lynx -version"),
    program("w3m -dump", "w3m -dump {url}", "w3m -version"),
    program("apt", "/usr/lib/apt/apt-helper download-file {url} out", "apt-get --version"),
    program("git ls-remote", "git ls-remote {url}repository.git"),
    program("pip download", PIP, f"{PYTHON} -m pip --version"),
    program("npm view --fetch-retry-mintimeout 500", NPM),
    of_python("requests", "requests.get(url).status_code"),
    of_python("httpx", "httpx.get(url).status_code"),
    of_python("aiohttp", "asyncio.run(fetch())", FETCH),
    of_python("urllib3", "urllib3.request('GET', url).status"),
    of_python("urllib.request", "urllib.request.urlopen(url).status"),
    of_node("fetch", "fetch(url)", built_in=True),
    of_node("axios", "need('axios').get(url)"),
    of_node("axios-retry", RETRY),
    of_node(
        "got", "import('got').then(it => it.default(url)).then(it => ({status: it.statusCode}))"
    ),
    Client(
        "Perl LWP",
        ("perl", "-MLWP", "-e", "print LWP->VERSION"),
        ("perl", "-MLWP", "-e", LWP, "{url}"),
    ),
    Client(
        "Ruby net/http",
        ("ruby", "--version"),
        ("ruby", "-rnet/http", "-e", f'{RUBY}; puts "=> #{{a}}"', "{url}"),
    ),
    Client(
        "PHP file_get_contents",
        ("php", "--version"),
        ("php", "-r", PHP, "{url}"),
    ),
    Client("Go net/http", ("go", "version"), (str(CACHE / "get"), "{url}")),
)


def prepare() -> None:
    """Installs what comes from PyPI and npm, and builds the Go program."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if not Path(PYTHON).exists():
        subprocess.run([sys.executable, "-m", "venv", CACHE / "venv"], check=True)
        subprocess.run([PYTHON, "-m", "pip", "install", "-q", *FROM_PYPI], check=True)
    if not (CACHE / "node_modules").exists():
        subprocess.run(["npm", "install", "--silent", "--prefix", CACHE, *FROM_NPM], check=True)
    (CACHE / "get.go").write_text(GO)
    subprocess.run(["go", "build", "-o", CACHE / "get", CACHE / "get.go"], check=False)


def version_of(client: Client) -> str | None:
    """The version, as short as it can be said; None if the client is not here."""
    try:
        done = subprocess.run(
            client.version, capture_output=True, text=True, check=False, timeout=60
        )
    except FileNotFoundError:
        return None
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return found[0] if found and not done.returncode else None


def behind(client: Client, scheme: str, kinds: Sequence[str]) -> list[str]:
    """What the client did behind each kind, in a word or two."""
    url = f"{scheme}://origin.test/"
    command = shlex.join(word.replace("{url}", url) for word in client.ask)
    # What the command prints goes to stderr, below the line that names the kind.
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("capport"), "behind", "--offline", "--json"),
            *("--as", ",".join(kinds), "--timeout", f"{PATIENCE}s", "--"),
            *("sh", "-c", f"exec {command}"),
        ],
        cwd=CACHE,
        capture_output=True,
        text=True,
        check=True,
    )
    reports = json.loads(done.stdout)
    printed = dict(re.findall(r"^--- ([\w-]+): .*\n((?:(?!--- ).*\n?)*)", done.stderr, re.M))
    return [outcome(reports[kind], printed.get(kind, "")) for kind in kinds]


def outcome(run: dict[str, object], printed: str) -> str:
    """`fails`, `511`, `**200**` and so on, and how often it tried if that was more than once."""
    status, report = run["status"], run["report"]
    assert isinstance(report, dict)
    said = re.findall(r"^=> (.*)$", printed, re.M)
    if status == 124:
        word = "waits"
    elif said:
        word = f"**{said[-1]}**" if said[-1] == "200" else said[-1]
    else:
        word = "fails" if status else "**succeeds**"
    tried = sum(
        count
        for client in report["clients"]
        for counts in (client["refused"], client["handshakes"])
        for count in counts.values()
    )
    return f"{word}, {tried} times" if tried > 1 else word


def table(scheme: str, kinds: Sequence[str], clients: dict[str, Client]) -> Iterator[str]:
    yield f"| client | {' | '.join(f'`{kind}`' for kind in kinds)} |"
    yield "|---" * (len(kinds) + 1) + "|"
    with ThreadPoolExecutor(2) as pool:  # they wait more than they compute
        results = pool.map(lambda client: behind(client, scheme, kinds), clients.values())
        for name, result in zip(clients, results, strict=True):
            print(f"{scheme}: {name}", file=sys.stderr, flush=True)
            yield f"| {name} | {' | '.join(result)} |"


def main() -> int:
    prepare()
    clients, missing = {}, []
    for client in CLIENTS:
        version = version_of(client)
        if version is None:
            missing.append(client.name)
        else:
            clients[f"{client.name} ({version})"] = client
    PAGE.write_text(
        TEXT.format(
            date=datetime.now(UTC).date(),
            plain="\n".join(table("http", PLAIN, clients)),
            secure="\n".join(table("https", SECURE, clients)),
        )
    )
    if missing:
        print(f"Not here: {', '.join(missing)}", file=sys.stderr)
    return 0


TEXT = """\
# What clients do behind each kind of portal

```console
$ sudo scripts/clients
```

That made this page on {date}, on Debian, by
[`capport behind`](README.md#run-a-program-behind-all-of-them) with each client in turn. Each client
has only the options that are named.

A result in bold is harm: the client reports success, or status 200, though all that it met was the
portal. A number is the status that a library gave its caller; a name is the error that it raised.
`waits` took longer than PATIENCE. Where a client tried more than once, the tries are counted.

## Plain HTTP

{plain}

Behind `511` every client fails, or tells its caller the status, except for those that look at none.
Behind `page`, `script`, `dns-lie` and, if it follows redirects, `redirect`, most take the portal's
page for the data. So look at the Content-Type before you use a body, and use https. The second
request of HTTPie looks for a new version of itself.

## HTTPS

{secure}

Behind `511` the refusal is the TLS alert `access_denied`, before any certificate; behind
`forged-tls` each client has to reject the certificate by itself.

## Systems and browsers

Chromium, Firefox, NetworkManager and ConnMan meet the portal in our own tests, in `tests/journey`:
each finds the portal, opens the sign-in page, and notices the grant.
""".replace("PATIENCE", f"{PATIENCE} s")


if __name__ == "__main__":
    sys.exit(main())
