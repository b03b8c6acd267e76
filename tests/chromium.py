"""Headless Chromium, driven over a pipe in its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/).

Enough to open a local page in one browser and see what it asks for, what it complains about and what it looks like.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
from itertools import count
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip
# Far more than any answer takes, also where other work has the cores: a browser that is stuck fails the test.
_PATIENCE_S = 120


def find_chromium() -> str | None:
    """Where the browser is, if it is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One browser process; pages are opened in it one after the other."""

    def __init__(self, program: str, home: Path) -> None:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # the protocol wants the file descriptors 3 and 4, which this process may use for something else
        command = ["/bin/bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash", program]
        self._process = subprocess.Popen(
            [*command, *_FLAGS, f"--user-data-dir={home}", "about:blank"],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._numbers = count(1)
        self._buffer = b""

    def close(self) -> None:
        """End the browser."""
        try:
            self.call("Browser.close")
        finally:
            self._process.wait(_PATIENCE_S)
            os.close(self._to)
            os.close(self._from)

    def call(self, method: str, session: str | None = None, **parameters):
        """Send a command and wait for its result."""
        return self.call_and_listen(method, session, [], **parameters)

    def call_and_listen(self, method, session, events, **parameters):
        """Likewise; what happens until then is appended to `events`."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") != number:
                events.append(answer)
            elif "error" in answer:
                message = f"{method}: {answer['error']}"
                raise RuntimeError(message)
            else:
                return answer["result"]

    def read(self):
        """Wait for the next message."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], _PATIENCE_S)
            chunk = os.read(self._from, 1 << 20) if ready else b""
            if not chunk:
                message = "the browser has ended, or says nothing"
                raise RuntimeError(message)
            self._buffer += chunk
        whole, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(whole)


class Page:
    """A local page as a reader meets it: opened once, with everything that happened meanwhile."""

    def __init__(self, browser: Chromium, path: Path, *, width=1200, height=900, dark=False) -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._target = target
        self.events = []
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self._call(f"{domain}.enable")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self._call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(browser.read())
        self.evaluate("document.title")  # whatever the page still says comes before the answer

    def _call(self, method, **parameters):
        return self._browser.call_and_listen(method, self._session, self.events, **parameters)

    def evaluate(self, expression):
        """Run JavaScript in the page, as the developer tools do: the page's own policy does not bind it."""
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def close(self):
        """Close the page."""
        self._call("Target.closeTarget", targetId=self._target)

    @property
    def complaints(self):
        """What stands in the console: messages, exceptions, violations of the page's policy."""
        kinds = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Audits.issueAdded"}
        return [event["params"] for event in self.events if event.get("method") in kinds]

    @property
    def requests(self):
        """The address of everything that the page asked for."""
        asked = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in asked]

    def printed(self) -> bytes:
        """The page on paper, as PDF."""
        return base64.b64decode(self._call("Page.printToPDF", printBackground=False)["data"])

    def emulate_print(self) -> None:
        """Show the page as it is laid out on paper."""
        self._call("Emulation.setEmulatedMedia", media="print")

    def screenshot(self, path: Path) -> None:
        """Save what the whole page looks like."""
        picture = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))
