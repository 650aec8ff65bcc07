# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The oldest pylxd that modules may meet, Debian 12's: the contract of the drivers, in a process that has this one.

The contract itself runs on the newest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from ansible_collections.mage.lxd.tests.integration import server
from ansible_collections.mage.lxd.tests.integration.playbook import ROOT

OLD = "2.2.10"
# With what Debian 12 has beside it. urllib3 is the last of its line, which every Python can import.
PACKAGES = (
    f"pylxd=={OLD}",
    "pbr==5.10.0",
    "requests==2.28.1",
    "requests-toolbelt==0.10.1",
    "requests-unixsocket==0.2.0",
    "chardet==5.1.0",
    "urllib3==1.26.20",
    "ws4py==0.5.1",
)
DOORS = ("pylxd-lxd", "pylxd-incus", "pylxd-https", "pylxd-ssh")
# How many tests of the contract each door has at least.
TESTS = 25
RUN = f"import sys, pylxd, pytest; assert pylxd.__version__ == '{OLD}', pylxd; sys.exit(pytest.main(sys.argv[1:]))"


def packages() -> Path:
    """A folder with the packages, beside which .venv has the rest."""
    folder = ROOT / ".cache" / f"pylxd-{OLD}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        server.run(*pip, "--target", str(made), *PACKAGES, timeout=300)
        made.rename(folder)
    return folder


def test_the_contract_on_the_oldest_pylxd(tmp_path: Path) -> None:
    assert metadata.version("pylxd") != OLD
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("driver_contract", "doors")]
    inner = ["-q", "-rp", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/inner", "-k", " or ".join(DOORS)]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *inner, *files],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(packages())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    for door in DOORS:
        assert len(re.findall(rf"^PASSED .*\[{door}\]", done.stdout, re.MULTILINE)) >= TESTS, done.stdout[-4000:]
