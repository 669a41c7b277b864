"""Addresses of endpoints: where the pictures and the key may go."""

import http.client
import json
from urllib.parse import urlsplit

import pytest
from captioning_server import ChatServer, json_reply
from endpoint_chats import CONFIG, conversation, no_wait

from eam_core.captioning.address import parse_address
from eam_core.captioning.endpoint import Endpoint, EndpointError
from eam_core.captioning.messages import CaptionError
from eam_core.captioning.source import open_model

pytestmark = pytest.mark.usefixtures("no_caption_settings")


def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(monkeypatch):
    monkeypatch.setenv("EAM_API_KEY", "sk-secret-key")
    with ChatServer() as other:
        redirect = json_reply({}, 308, Location=f"{other.url}/v1/chat/completions")
        with ChatServer(lambda asked: redirect, models=redirect) as server:
            for model in (Endpoint(server.url, "m"), Endpoint(server.url)):
                with pytest.raises(CaptionError, match=r"got a redirect .*, which is not followed") as error:
                    model.generate([conversation()], CONFIG)
                assert other.url not in str(error.value)
        assert not other.asked and not other.listed


def test_the_key_is_in_the_header_and_nowhere_else(monkeypatch, caplog, capfd):
    key = "sk-secret/key=="
    monkeypatch.setenv("EAM_API_KEY", f" {key}\n")
    replies = [
        json_reply({"error": {"message": "x" * 150 + f" key {key} is unknown"}}, 400),
        json_reply(f"<p>{key}".encode()),
        json_reply({"error": f"your key {key}"}, 500),
    ]
    with ChatServer(lambda asked: replies[int(asked.question)]) as server:
        model = Endpoint(server.url, sleep=no_wait([]))
        answers = model.generate([conversation(str(number)) for number in range(3)], CONFIG)
    for asked in server.asked:
        assert asked.headers["Authorization"] == f"Bearer {key}"
        assert key not in json.dumps(asked.fields) + asked.path
    assert server.listed[0]["Authorization"] == f"Bearer {key}"
    told = [*map(str, answers), model.identity, repr(vars(model)), caplog.text, *capfd.readouterr()]
    assert all(isinstance(answer, CaptionError) for answer in answers) and not any("sk-" in text for text in told)
    monkeypatch.delenv("EAM_API_KEY")
    with ChatServer() as server:
        Endpoint(server.url).generate([conversation()], CONFIG)
    assert "Authorization" not in server.asked[0].headers


@pytest.mark.parametrize("key", ["sk-\u00e9\u00e9", "sk-a\nX-Evil: 1"])
def test_a_key_that_no_header_can_hold_is_told_without_it(monkeypatch, key):
    monkeypatch.setenv("EAM_API_KEY", key)
    with ChatServer() as server, pytest.raises(CaptionError, match="EAM_API_KEY: expected printable ASCII") as error:
        Endpoint(server.url).generate([conversation()], CONFIG)
    assert "sk-" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.1.5:8000",
        "http://localhost.evil.example/v1",
        "http://127.0.0.1.evil.example",
        "http://0.0.0.0:8000",
        "http://127.1:8000",
        "http://2130706433",
        "http://[::ffff:127.0.0.1]:8000",
        "http://[fe80::1]",
        "https://api.example.com/v1",
        "http://LOCALHOST.:80",
    ],
)
def test_other_machines_are_refused_until_somebody_opts_in(url, monkeypatch):
    for make in (lambda: Endpoint(url), lambda: open_model(url)):
        with pytest.raises(CaptionError, match=r"to which the pictures would leave this machine; .*--allow-remote"):
            make()
    monkeypatch.setenv("EAM_ALLOW_REMOTE", "0")
    with pytest.raises(CaptionError):
        Endpoint(url)
    assert not Endpoint(url, allow_remote=True).address.is_local
    monkeypatch.setenv("EAM_ALLOW_REMOTE", "1")
    assert not Endpoint(url).address.is_local
    host = urlsplit(url).hostname
    for listed, allowed in ((host, True), (f"a.example, {host.upper()} ,", True), (f"x{host},1,*", False)):
        monkeypatch.setenv("EAM_ALLOW_REMOTE", listed)
        if allowed:
            assert Endpoint(url).address.host == host
        else:
            with pytest.raises(CaptionError, match="name the host in the environment variable EAM_ALLOW_REMOTE"):
                Endpoint(url)


def test_zero_allows_no_host_of_that_name(monkeypatch):
    monkeypatch.setenv("EAM_ALLOW_REMOTE", "0")
    with pytest.raises(CaptionError, match="to which the pictures would leave this machine"):
        Endpoint("http://0:8000")


REMOTE = "https://api.example.com/v1"


@pytest.mark.parametrize(
    ("url", "allow_remote", "listed", "takes"),
    [
        ("http://127.0.0.1:8000", False, "", True),
        ("http://[::1]:8000", False, "1", True),
        (REMOTE, False, "1", False),
        (REMOTE, False, "api.example.com", True),
        (REMOTE, True, "", True),
        (REMOTE, True, "1", True),
        ("https://other.example.com/v1", True, "api.example.com", True),
        ("https://[2001:DB8::1]/v1", False, "[2001:db8::1]", True),
        ("http://api.example.com/v1", False, "api.example.com", False),
        ("http://192.168.1.5:8000", True, "192.168.1.5", False),
    ],
)
def test_the_key_goes_to_this_machine_and_encrypted_to_hosts_that_were_named(
    url, allow_remote, listed, takes, monkeypatch
):
    """Seen where the header is made: the other machine is a server of this one's, reached without TLS."""
    monkeypatch.setenv("EAM_ALLOW_REMOTE", listed)
    monkeypatch.setenv("EAM_API_KEY", "sk-secret")
    with ChatServer(lambda asked: json_reply({}, 403)) as server:
        model = Endpoint(url, "m", allow_remote)
        port = int(server.url.rpartition(":")[2])
        there = lambda self: http.client.HTTPConnection("127.0.0.1", port, timeout=5)  # noqa: E731
        monkeypatch.setattr("eam_core.captioning.exchange.Exchange._connected", there)
        with pytest.raises(EndpointError) as error:
            model.generate([conversation()], CONFIG)
    assert [asked.headers.get("Authorization") for asked in server.asked] == ["Bearer sk-secret" if takes else None]
    told = "give a valid key" if takes else "EAM_API_KEY was not sent, as other machines get it by https only"
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        (" http://127.9.9.9/v1/ ", "http://127.9.9.9:80/v1"),
        ("https://LocalHost:1234/v1/chat/completions", "https://localhost:1234/v1"),
        ("http://[::1]:11434/", "http://[::1]:11434/v1"),
        ("http://localhost/api", "http://localhost:80/api/v1"),
        ("http://localhost/v1beta/openai", "http://localhost:80/v1beta/openai"),
    ],
)
def test_addresses_of_this_machine(url, base):
    address = parse_address(url)
    assert address.is_local and str(address) == base


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://127.0.0.1", "got the scheme 'ftp'"),
        ("file:///etc/passwd", "got the scheme 'file'"),
        ("127.0.0.1:8000", "expected an http or https address"),
        ("http://", "expected an address with a host"),
        ("http://127.0.0.1@evil.example", "without user name and password, got one for 'evil.example'"),
        ("http://name:pa55word@127.0.0.1", "without user name and password"),
        ("http://127.0.0.1\\@evil.example", "got blanks, backslashes"),
        ("http://127.0.0.1\t.evil.example", "got blanks, backslashes"),
        ("http://ｌocalhost", "letters beyond ASCII"),
        ("http://127.0.0.1:99999", "something that cannot be read"),
        ("http://[::1", "something that cannot be read"),
        ("http://127.0.0.1/v1?key=pa55word", "without '?' and '#'"),
        ("http://127.0.0.1%2eevil.example", "expected an address with a host"),
    ],
)
def test_addresses_that_mislead_are_refused_even_with_leave(url, message):
    with pytest.raises(CaptionError, match=r"^endpoint: ") as error:
        Endpoint(url, allow_remote=True)
    assert message in str(error.value) and "pa55word" not in str(error.value)


def test_a_name_that_only_claims_to_be_this_machine_gets_nothing(monkeypatch):
    """A hosts file may say anything of "localhost"."""
    with ChatServer() as server:
        monkeypatch.setattr("eam_core.captioning.exchange.is_loopback", lambda number: False)
        with pytest.raises(CaptionError, match=r"expected localhost to be this machine, got 127\.0\.0\.1"):
            Endpoint(server.url.replace("127.0.0.1", "localhost")).identity  # noqa: B018
    assert not server.listed


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    with ChatServer() as proxy, ChatServer() as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert Endpoint(server.url).generate([conversation()], CONFIG) == ["A cat."]
    assert not proxy.asked and not proxy.listed
