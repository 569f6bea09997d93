"""Hosts, origins and tokens: what no client ever sends is told, and what any sends is not."""

import pytest
from trunkline.gateway.settings.spelling import fault_in_host, fault_in_origin, fault_in_token


@pytest.mark.parametrize(
    "host",
    [
        *("mcp.example", "MCP.example:443", "mcp.example.", "trunkline", "a_b.example", "xn--mnchen-3ya.example"),
        *("10.0.0.1", "10.0.0.1:8920", "fd00::1", "[fd00::1]", "[fd00::1]:8920", "[::ffff:10.0.0.1]", "fe80::1%eth0"),
    ],
)
def test_a_host_is_listed_as_it_stands_in_a_url(host: str) -> None:
    assert fault_in_host(host) == ""


@pytest.mark.parametrize(
    ("host", "said"),
    [
        *((host, "wildcards") for host in ("*", "*.example", "mcp.example:*")),
        *((host, "xn--") for host in ("m\xfcnchen.example", "\uff41")),
        *((host, "expected a name") for host in ("", " ", "https://mcp.example", "mcp.example/", "a b", "a,b", "a@b")),
        *((host, "expected a name") for host in ("a:", "a:0", "a:65536", "a:b", ":80", "a..b", ".a", "a:1:2")),
        *((host, "expected a name") for host in ("[fd00::1", "fd00::1]", "[a]", "[]:80", "[10.0.0.1]", "a\n", "a?b")),
    ],
)
def test_a_host_that_no_client_names_is_told(host: str, said: str) -> None:
    assert said in fault_in_host(host)


@pytest.mark.parametrize(
    "origin",
    [
        *("https://app.example", "HTTPS://App.example/", "http://app.example:8080", "https://[fd00::1]:8443", "null"),
        *("http://localhost:3000", "https://app.example:80", "http://app.example:443", "https://10.0.0.1"),
        *(
            "chrome-extension://abcdefghijklmnop",
            "vscode-webview://1v-2_3",
            "capacitor://localhost",
            "file://",
            "app://.",
        ),
    ],
)
def test_an_origin_is_listed_as_a_browser_sends_it(origin: str) -> None:
    assert fault_in_origin(origin) == ""


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        *((origin, "wildcards") for origin in ("*", "https://*", "https://*.example", "http://localhost:*")),
        ("https://m\xfcnchen.example", "xn--"),
        *(
            (origin, "expected a page's")
            for origin in (
                *("", " ", "app.example", "//app.example", "https:app.example", "1https://a", "NULL"),
                *("https://", "https://a/b", "https://a//", "https://a?b", "https://a#b", "https://a\n"),
                *(
                    "https://u@a",
                    "https://a b",
                    "https://a, https://b",
                    "https://a:x",
                    "https://a:0",
                    "https://fd00::1",
                ),
            )
        ),
        ("https://app.example:443", "write https://app.example"),
        ("HTTP://app.example:80/", "write http://app.example"),
    ],
)
def test_an_origin_that_no_browser_sends_is_told(origin: str, said: str) -> None:
    assert said in fault_in_origin(origin)


@pytest.mark.parametrize("token", ["x", "a.b-c_d~e+f/g=", "!#$%&'()*:;<=>?@[]^`{|}", "\xe4\xff"])
def test_a_token_is_one_word(token: str) -> None:
    assert fault_in_token(token) == ""


@pytest.mark.parametrize("token", ["", " ", "a b", "a,b", "a\tb", "a\n", "\x7f", "\xa0", "\u20ac", "\x00"])
def test_a_token_that_nobody_could_send_is_told(token: str) -> None:
    told = fault_in_token(token)
    assert "nobody could send it" in told
