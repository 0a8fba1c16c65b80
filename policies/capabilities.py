"""Which builtins policy may use, for both engines: `python -m policies.capabilities` writes `capabilities.json`.

A builtin is on the list when its answer depends on its arguments alone, its cost is bounded by their size, and the
embedded engine gives OPA's answer (a differential test says so). What is missing, and why:

- it reads clock, chance, network or process: `time.now_ns`, `rand.intn`, `uuid.rfc4122`, `http.send`,
  `net.lookup_ip_addr`, `opa.runtime`, `io.jwt.decode_verify` (compares with the clock), `trace`, `print`;
- the embedded engine would need the host for it, and policy that decides by facts needs it not: everything of
  `crypto`, `graphql`, `io.jwt`, `providers`, `rego`, `time`, `units`, `uri`, `uuid`, `yaml` and others;
- Wasm gives another answer: `indexof` of an empty text;
- `semver.compare` does not end in OPA 1.22.2 when a pre-release number is beyond 64 bits;
- the embedded engine has it, but policy by facts has no use for it, so it is not held equal: `base64.decode`,
  `json.unmarshal`, `regex.find_all_string_submatch_n` and the like.

Of OPA 1.22.2's own cases for what is on the list, Wasm answers all but these as OPA does, when `input` is an object:
- a set becomes an array, and an object or a set is walked through, in another order: `sort` what has an order;
- `data.x[2]` finds the key "2" in OPA alone: keys of objects are strings, so look up by strings;
- `format_int` of more than 64 bits and 0 / 0 end the evaluation, and so deny.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

# Builtins that Wasm carries in itself.
NATIVE = frozenset(
    """
abs and array.concat array.reverse array.slice assign bits.and bits.lsh bits.negate bits.or bits.rsh bits.xor ceil
concat contains count div endswith eq equal floor format_int glob.match graph.reachable gt gte
internal.member_2 internal.member_3 intersection is_array is_boolean is_null is_number is_object is_set is_string
json.filter json.remove lower lt lte max min minus mul neq net.cidr_contains net.cidr_intersects numbers.range
object.filter object.get object.keys object.remove object.union or plus product regex.is_valid regex.match rem replace
round set_diff sort split startswith strings.replace_n strings.reverse substring sum to_number trim trim_left
trim_prefix trim_right trim_space trim_suffix type_name union upper walk
""".split()  # noqa: SIM905 - a list of words reads best as words
)

# Builtins that `policies.builtins` gives to Wasm.
HOST = frozenset({"sprintf", "strings.any_prefix_match", "strings.any_suffix_match"})

PATH = Path(__file__).with_name("capabilities.json")


def capabilities(current: dict[str, Any]) -> dict[str, Any]:
    """The capabilities document, from that of the OPA in use (`opa capabilities --current`). Raises `KeyError` when
    that OPA lacks a builtin."""
    known = {item["name"]: item for item in current["builtins"]}
    return {
        "allow_net": [],  # a schema must not be fetched while policy is checked
        "builtins": [known[name] for name in sorted(NATIVE | HOST)],
        # Template strings hold references within strings, which `policies.opa_server.rooted` does not move.
        "features": [name for name in current["features"] if name != "template_strings"],
        "future_keywords": current["future_keywords"],
    }


def render(opa: str = "opa") -> str:
    """The content of `capabilities.json`, by the OPA at `opa`."""
    command = [opa, "capabilities", "--current"]
    done = subprocess.run(command, check=True, capture_output=True, timeout=30)  # noqa: S603 - a fixed command
    return json.dumps(capabilities(json.loads(done.stdout)), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    PATH.write_text(render())
