"""Judge backbones by name and print, as JSON lines, which rules each breaks and why. The arguments
are the Python that the kit is to start, "all" or "brief", and the names. In brief, the rules that
train a model are left out where one of the others is broken.
"""

import json
import sys

from sheen_cli.testing import judged
from sheen_cli.testing.report import Finding
from sheen_cli.testing.rules_speech import SPEECH

sys.executable, extent, *names = sys.argv[1:]
for name in names:
    found: dict[str, Finding] = {}
    for finding in judged(name):
        found[finding.rule] = finding
        bad = any(each.status == "failed" for each in found.values())
        if extent == "brief" and bad and finding.rule == SPEECH[-1].name:
            break
    broken = {rule: str(finding) for rule, finding in found.items() if finding.status == "failed"}
    offered = [rule for rule, finding in found.items() if finding.status == "not offered"]
    print(json.dumps({"name": name, "broken": broken, "not offered": offered}), flush=True)
