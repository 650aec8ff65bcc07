# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cache plugin hands back is what the same server said, whatever an instance says of itself."""

from __future__ import annotations

import base64
import json
import typing as t
from pathlib import Path

import pytest
from ansible.plugins.cache import CachePluginAdjudicator

from ansible_collections.mage.lxd.plugins.inventory import lxd
from ansible_collections.mage.lxd.plugins.plugin_utils import _inventory_file

# Words of Ansible's own in the files of a cache: what is read from there can be run as a template, or cannot be read.
TAGS = {
    "template": {
        "__ansible_type": "_AnsibleTaggedStr",
        "value": "{{ 6 * 7 }}",
        "tags": [{"__ansible_type": "TrustedAsTemplate"}],
    },
    "unknown": {"__ansible_type": "TrustedAsTemplate", "value": ""},
    "vault": {"__ansible_vault": "$ANSIBLE_VAULT;1.1;AES256"},
    "unsafe": {"__ansible_unsafe": "text"},
}


class Plugin(lxd.InventoryModule):
    """One run of Ansible on a file, with a cache that outlives it. ``has_read`` says whether the servers were asked."""

    def __init__(self, folder: Path, listing: dict[str, t.Any] | None = None) -> None:
        super().__init__()
        self._cache = CachePluginAdjudicator("jsonfile", _uri=str(folder), _prefix="", _timeout=0)
        self._vars: dict[str, t.Any] = {}
        self.listing = listing or {"hosts": [], "warnings": [], "whole": True}
        self.has_read = False

    def _read(self, settings: t.Any) -> dict[str, t.Any]:
        self.has_read = True
        return self.listing

    def get_option(self, option: str, hostvars: t.Any = None) -> t.Any:
        return option == "cache"

    def listed(self, **raw: t.Any) -> dict[str, t.Any]:
        """What the file ``raw`` lists, here and now."""
        known = {*_inventory_file.OF_A_SERVER, "servers"}
        environment = {"trust_token": raw.pop("token", None)}
        found = self._listing("lxd.yml", raw, _inventory_file.parse(raw, known, environment), True)
        self.update_cache_if_changed()
        return found


@pytest.mark.parametrize("word", TAGS)
def test_what_an_instance_says_is_data_when_it_comes_from_a_cache(word: str, tmp_path: Path) -> None:
    variables = {"own": TAGS[word], "lxd_nat": [TAGS[word]]}
    listing = {"hosts": [{"name": "web-1", "groups": [], "variables": variables}], "warnings": [], "whole": True}
    for is_first in (True, False):
        plugin = Plugin(tmp_path, listing)
        assert plugin.listed(endpoint="/s")["hosts"] == listing["hosts"]
        assert plugin.has_read is is_first


def has_read(folder: Path, **raw: t.Any) -> bool:
    plugin = Plugin(folder)
    plugin.listed(**raw)
    return plugin.has_read


@pytest.mark.parametrize("variable", ["LXD_SOCKET", "INCUS_SOCKET", "LXD_DIR", "INCUS_DIR"])
def test_no_server_is_answered_for_by_another(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LXD_SOCKET", "INCUS_SOCKET", "LXD_DIR", "INCUS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "/a")
    assert (has_read(tmp_path), has_read(tmp_path)) == (True, False)
    monkeypatch.setenv(variable, "/nope")
    assert has_read(tmp_path)


def test_a_remote_that_leads_elsewhere_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LXD_CONF", str(tmp_path))
    for address in ("unix:///a", "unix:///b"):
        (tmp_path / "config.yml").write_text(f"remotes: {{rack: {{addr: '{address}'}}}}")
        assert has_read(tmp_path / "cache", endpoint="lxc:rack")
        assert not has_read(tmp_path / "cache", endpoint="lxc:rack")


def test_what_the_file_says_counts_and_a_new_format_but_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has_read(tmp_path, endpoint="/s")
    assert has_read(tmp_path, endpoint="/s", projects=["shop"])
    tokens = [
        base64.b64encode(json.dumps({"fingerprint": "ab" * 32, "secret": secret, "addresses": []}).encode()).decode()
        for secret in ("one", "two")
    ]
    assert [has_read(tmp_path, endpoint="/s", token=token) for token in tokens] == [True, False]
    monkeypatch.setattr(lxd, "LISTING_FORMAT", lxd.LISTING_FORMAT + 1)
    assert has_read(tmp_path, endpoint="/s", token=tokens[0])
