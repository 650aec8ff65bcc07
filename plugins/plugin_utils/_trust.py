# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""What a server says is data, and what a user writes may be a template, on every ansible-core."""

from __future__ import annotations

import typing as t

import ansible.template
from ansible.utils.unsafe_proxy import wrap_var

# Since 2.19 only text that was marked as trusted is a template. Before, all is, unless it is marked as unsafe.
TRUST_IS_MARKED = hasattr(ansible.template, "trust_as_template")


def as_data(value: t.Any) -> t.Any:
    """The value, with every text in it marked so that nobody takes it for a template."""
    return value if TRUST_IS_MARKED else wrap_var(value)


def as_expression(text: str) -> str:
    """An expression that the user wrote into a file of theirs, so that it is evaluated."""
    return str(text) if not TRUST_IS_MARKED else ansible.template.trust_as_template(text)


def as_condition(text: str) -> str:
    """An expression of which only the truth counts. Before 2.19, the value of one is a text, except for a truth."""
    return as_expression(text if TRUST_IS_MARKED else f"(({text}) and true) or false")
