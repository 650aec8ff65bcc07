# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This code is private to mage.lxd: it may change without notice.

"""Observe, plan, apply, result: the one way in which every module runs.

Check mode, diff mode and fail_json live here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import sys
import typing as t

from ansible.module_utils.basic import AnsibleModule

from . import _errors
from ._context import Context, Report
from ._plan import Plan
from ._server import options, snapshot

D = t.TypeVar("D")
S = t.TypeVar("S")
P = t.TypeVar("P", bound=Plan)


@dataclasses.dataclass(frozen=True)
class Job(t.Generic[D, S, P]):
    """A module's steps.

    ``parse`` turns parameters into a value, ``observe`` reads, ``plan`` decides and is pure, ``apply`` carries out,
    ``present`` makes the return values (``report`` is None in check mode and where nothing was to be done).
    ``hidden`` makes the parameters such that they may be told.
    """

    arguments: t.Mapping[str, t.Any]
    parse: t.Callable[[t.Mapping[str, t.Any], str], D]
    observe: t.Callable[[D, Context], S]
    plan: t.Callable[[D, S, bool], P]
    apply: t.Callable[[D, S, P, Context], Report]
    present: t.Callable[[D, S, P, t.Optional[Report]], t.Mapping[str, t.Any]]
    hidden: t.Optional[t.Callable[[t.Mapping[str, t.Any]], t.Mapping[str, t.Any]]] = None


def run(job: Job[D, S, P]) -> None:
    """Run a module to its end: exit_json or fail_json."""
    module = AnsibleModule(argument_spec={**options.ARGUMENTS, **job.arguments}, supports_check_mode=True)
    params = dict(module.params)
    if job.hidden:
        # Every word of what the log leaves out would be blotted out of the result, too.
        module.no_log_values.clear()
        server_secrets = (params[name] for name, option in options.ARGUMENTS.items() if option.get("no_log"))
        module.no_log_values.update(filter(None, server_secrets))
        module.params.update(job.hidden(params))
    try:
        server, desired = _parsed(job, params)
    except _errors.InvalidInput as error:
        module.fail_json(msg=_listed("Invalid input", error.problems), problems=list(error.problems))
    context = Context(params, module.check_mode, server)
    try:
        result = _converge(job, desired, context, module)
    except _errors.InvalidInput as error:
        module.fail_json(msg=_listed("Nothing was changed", error.problems), problems=list(error.problems))
    except _errors.MageError as error:
        module.fail_json(msg=str(error))
    finally:
        context.close()
    if result.get("failures"):
        module.fail_json(msg=_listed("Failed", result["failures"]), **result)
    module.exit_json(**result)


def _parsed(job: Job[D, S, P], params: t.Mapping[str, t.Any]) -> tuple[options.ServerOptions, D]:
    """The server and what is asked of it. Raises InvalidInput with the mistakes in both."""
    try:
        server = options.parse(params)
    except _errors.InvalidInput as error:
        try:
            job.parse(params, "default")
        except _errors.InvalidInput as other:
            raise _errors.InvalidInput([*error.problems, *other.problems]) from error
        raise
    return server, job.parse(params, server.project)


def _converge(job: Job[D, S, P], desired: D, context: Context, module: AnsibleModule) -> dict[str, t.Any]:
    snapshot.check_project(context.driver, context.server.project)
    observed = job.observe(desired, context)
    plan = job.plan(desired, observed, context.check_mode)
    report = None
    if plan.changed and not context.check_mode:
        try:
            report = job.apply(desired, observed, plan, context)
        except _errors.InvalidInput as error:
            raise _errors.MageError(_listed("Stopped on the way", error.problems)) from error
    for warning in (*plan.warnings, *plan.missing, *(report.warnings if report else ())):
        module.warn(warning)
    result = {"changed": plan.changed, "actions": plan.actions(), **job.present(desired, observed, plan, report)}
    if plan.missing:
        result["missing"] = list(plan.missing)
    if report and report.failures:
        result["failures"] = list(report.failures)
    if module._diff:
        result["diff"] = plan.diff()
    return result


def _listed(title: str, texts: t.Sequence[str]) -> str:
    if len(texts) == 1:
        return f"{title}: {texts[0]}"
    return f"{title}: {len(texts)} problems\n" + "\n".join(f"  {text}" for text in texts)


def interpreter() -> str:
    """The Python that runs this module, for messages."""
    return sys.executable
