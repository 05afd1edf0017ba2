"""The weights of a model reach a server: by a command that starts it, or by an address that makes it load them."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from openrlhf.config.iterate_settings import IteratedSamplingConfig
from openrlhf.errors import UserError
from openrlhf.rejection import child_process
from openrlhf.rejection.child_process import alone_in
from openrlhf.rejection.server_answer import health_of, of_the_protocol
from openrlhf.rejection.serving import serving

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(sys.argv[1].encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_server_is_started_with_the_model_and_ended(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    port = free_port()
    command = f"{sys.executable} {tmp_path / 'server.py'} {{model}} {port}"
    settings = IteratedSamplingConfig(url=f"http://127.0.0.1:{port}/v1", start_command=command)
    for model in ("one model", "another"):
        with serving(settings, model):
            assert httpx.get(f"http://127.0.0.1:{port}").text == model
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}")


def test_a_server_ends_with_the_script_that_has_started_it(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    port = free_port()
    (tmp_path / "serve.sh").write_text(f'{sys.executable} {tmp_path / "server.py"} "$1" {port}\necho ended\n')
    command = f"bash {tmp_path / 'serve.sh'} {{model}}"
    with serving(IteratedSamplingConfig(url=f"http://127.0.0.1:{port}/v1", start_command=command), "a model"):
        assert httpx.get(f"http://127.0.0.1:{port}").text == "a model"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}")


RUN_OF_A_SERVER = """
import sys, time
from pathlib import Path
from openrlhf.config.iterate_settings import IteratedSamplingConfig
from openrlhf.rejection.child_process import alone_in
from openrlhf.rejection.serving import serving
folder, url, command = sys.argv[1:]
with alone_in(Path(folder)) as lock, serving(IteratedSamplingConfig(url=url, start_command=command), "a model", lock):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_server_of_a_script_ends_with_a_killed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "_SECONDS_TO_WAIT", 15.0)
    (tmp_path / "server.py").write_text(SERVER)
    port = free_port()
    server = f"{sys.executable} {tmp_path / 'server.py'}"
    (tmp_path / "serve.sh").write_text(f'timeout --foreground 60 {server} "$1" {port}\necho ended\n')
    url, command = f"http://127.0.0.1:{port}/v1", f"bash {tmp_path / 'serve.sh'} {{model}}"
    words = [sys.executable, "-c", RUN_OF_A_SERVER, str(tmp_path), url, command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.kill()
        run.stdout.close()
        with alone_in(tmp_path), pytest.raises(httpx.ConnectError):
            httpx.get(url)


def test_a_server_of_another_model_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    port = free_port()
    command = f"{sys.executable} {tmp_path / 'server.py'} {{model}} {port}"
    settings = IteratedSamplingConfig(url=f"http://127.0.0.1:{port}/v1", start_command=command)
    with serving(settings, "one model"), pytest.raises(UserError, match="answers before"), serving(settings, "another"):
        pass


def test_a_server_that_tells_no_models_answers_by_its_health(tmp_path: Path) -> None:
    """As `transformers serve` does where nothing was ever downloaded."""
    fails = 'self.send_response(200 if self.path == "/health" else 500)'
    (tmp_path / "server.py").write_text(SERVER.replace("self.send_response(200)", fails))
    port = free_port()
    command = f"{sys.executable} {tmp_path / 'server.py'} {{model}} {port}"
    url = f"http://127.0.0.1:{port}"
    with serving(IteratedSamplingConfig(url=url, start_command=command, start_timeout_seconds=20), "model"):
        assert httpx.get(f"{url}/health").text == "model"


@pytest.mark.parametrize(
    ("given", "health", "protocol"),
    [
        ("http://host:8000", "http://host:8000/health", "http://host:8000/v1"),
        ("http://host/v1/", "http://host/health", "http://host/v1"),
        ("http://host/v1beta/openai", "http://host/health", "http://host/v1beta/openai"),
        ("http://host/models/v2", "http://host/models/health", "http://host/models/v2"),
    ],
)
def test_where_a_server_tells_how_it_is(given: str, health: str, protocol: str) -> None:
    assert (health_of(given), of_the_protocol(given)) == (health, protocol)


TRAINING = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: None)  # a training saves before it leaves
print(os.getpid(), flush=True)
time.sleep(1)
pathlib.Path(sys.argv[1], "saved").touch()
"""
RUN = """
import sys, time
from pathlib import Path
from openrlhf.rejection.child_process import alone_in, start
with alone_in(Path(sys.argv[1])) as lock:
    start([sys.executable, *sys.argv[2:]], lock)
    time.sleep(60)
"""


def test_what_a_killed_run_has_started_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [sys.executable, "-c", RUN, str(tmp_path), "-c", TRAINING, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        training = run.stdout.readline().strip()
        run.kill()
        run.wait()
        with monkeypatch.context() as hasty:
            hasty.setattr(child_process, "_SECONDS_TO_WAIT", 0.0)
            with pytest.raises(UserError, match=rf"\(process {training}\), after 0 seconds"), alone_in(tmp_path):
                pass
        with alone_in(tmp_path):
            assert (tmp_path / "saved").exists()
    told = f"what a killed one has started has not ended (process {training}): waiting for it"
    assert told in capsys.readouterr().err


def test_a_lock_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with (
        pytest.raises(UserError, match=r"\.lock, the lock of a run, cannot be written: Is a directory"),
        alone_in(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("command", "seconds", "words"),
    [
        (f"{sys.executable} -c exit(7) {{model}}", 20.0, "ended with exit code 7"),
        ("no-such-program {model}", 20.0, "cannot be run: no-such-program"),
        (f"{sys.executable} -c 'import time; time.sleep(60)' {{model}}", 0.2, "does not answer 0.2 seconds after"),
    ],
)
def test_a_server_that_does_not_come_up_is_told(command: str, seconds: float, words: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    settings = IteratedSamplingConfig(url=url, start_command=command, start_timeout_seconds=seconds)
    with pytest.raises(UserError) as error, serving(settings, "model"):
        pass
    assert words in str(error.value)


def test_a_running_server_is_told_to_load_the_model(tmp_path: Path) -> None:
    loaded = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            loaded.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200 if len(loaded) == 1 else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    settings = IteratedSamplingConfig(reload_url=f"http://127.0.0.1:{server.server_address[1]}/load")
    with serving(settings, str(tmp_path)):
        assert loaded == [f'{{"model_path":"{tmp_path}"}}']
    with pytest.raises(UserError, match="has not loaded"), serving(settings, str(tmp_path)):
        pass
    server.shutdown()
    server.server_close()
