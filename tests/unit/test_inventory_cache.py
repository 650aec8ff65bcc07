# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cache plugin hands back is what the server said, whatever an instance says of itself."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible.plugins.cache import CachePluginAdjudicator

from ansible_collections.mage.lxd.plugins.inventory.lxd import InventoryModule

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


@pytest.mark.parametrize("word", TAGS)
def test_what_an_instance_says_is_data_when_it_comes_from_a_cache(word: str, tmp_path: Path) -> None:
    variables = {"own": TAGS[word], "lxd_nat": [TAGS[word]]}
    listing = {"hosts": [{"name": "web-1", "groups": [], "variables": variables}], "warnings": [], "whole": True}
    reads: list[t.Any] = []

    class Plugin(InventoryModule):
        def _read(self, settings: t.Any) -> dict[str, t.Any]:
            reads.append(settings)
            return listing

        def get_option(self, option: str, hostvars: t.Any = None) -> t.Any:
            return option == "cache"

    for _time in range(2):
        plugin = Plugin()
        plugin._cache = CachePluginAdjudicator("jsonfile", _uri=str(tmp_path), _prefix="", _timeout=0)
        plugin._vars = {}
        assert plugin._listing("lxd.yml", {}, t.cast(t.Any, None), True)["hosts"] == listing["hosts"]
        plugin.update_cache_if_changed()
    assert len(reads) == 1
