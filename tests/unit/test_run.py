# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module tells of its own parameters."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.module_utils import basic

from ansible_collections.mage.lxd.plugins.modules import instances


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], params: dict[str, t.Any]) -> str:
    """Run the module as a controller does, with what it refuses; all that it says."""
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": params}).encode())
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
    with pytest.raises(SystemExit):
        instances.main()
    return capsys.readouterr().out


def test_secret_parameters_are_not_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    item = {"name": "a.b", "config": {"environment.A": "canary-value", "user.plain": "plain-value"}}
    params = {"instances": [item], "endpoint": "https://192.0.2.1:8443", "trust_token": "canary-token"}
    said = refused(monkeypatch, capsys, params)
    result = json.loads(said)
    assert result["failed"]
    # The mistakes in both, at once.
    assert len(result["problems"]) == 3
    assert result["problems"][-1].startswith('instances[0].name: "a.b": ')
    # What is no secret is told as it is, though it stands beside one.
    told = result["invocation"]["module_args"]
    assert told["instances"][0]["config"]["user.plain"] == "plain-value"
    assert "canary" not in said
