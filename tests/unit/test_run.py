# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module tells of its own parameters."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.module_utils import basic

from ansible_collections.mage.lxd.plugins.modules import instances, nat, proxy_upstreams


def refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    params: dict[str, t.Any],
    main: t.Callable[[], None] = instances.main,
) -> str:
    """Run the module as a controller does, with what it refuses; all that it says."""
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": params}).encode())
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
    with pytest.raises(SystemExit):
        main()
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


@pytest.mark.parametrize(
    "instances_said",
    [
        '[{"name": "a", "config": {"environment.A": "canary-value"}}]',
        ["canary-value"],
        [{"name": "a", "environment": {"A": "canary-value"}}],
    ],
)
def test_secrets_of_a_mistyped_list_are_not_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], instances_said: t.Any
) -> None:
    said = refused(monkeypatch, capsys, {"instances": instances_said, "endpoint": "unix:///nonexistent.socket"})
    assert "instances[0]" in json.loads(said)["problems"][0]
    assert "canary" not in said


@pytest.mark.parametrize(("module", "option"), [(nat, "nat_policy"), (proxy_upstreams, "proxy_policy")])
def test_mistakes_in_a_policy_stand_beside_all_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: t.Any, option: str
) -> None:
    params = {option: {"projcts": ["a"]}, "declared": [{"name": "a", "project": "default"}], "endpoint": "nowhere:"}
    problems = json.loads(refused(monkeypatch, capsys, params, module.main))["problems"]
    assert [text.partition(":")[0].partition("[")[0] for text in problems] == [
        "endpoint",
        "declared",
        f"{option}.projcts",
    ]
    assert problems[-1] == f"{option}.projcts: unknown key (did you mean projects?)"
