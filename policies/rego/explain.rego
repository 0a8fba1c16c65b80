# For people: the facts behind a decision. Not cached, so it may read the clock. `policies/explain.py` makes sentences
# and remedies of this document.
package sallyport

import data.sallyport.denying
import data.sallyport.matching
import data.sallyport.requirements

# METADATA
# scope: document
# entrypoint: true
explain := {
	"decision": decision,
	"failed": [fact | some [_, code] in sort(requirements.failed); some fact in facts[code]],
	"denies": [deny | some deny in matching_denies],
	"near_misses": array.slice([miss | some [_, _, miss] in sort(misses)], 0, 5),
}

# The facts that each requirement compares: what was found, and what the route asks for.
facts.kind_not_allowed contains fact("identity.kind", object.get(input.identity, "kind", null), needs("kinds"))

facts.posture_failed contains fact("identity.verdict", input.identity.verdict, ["passed"])

facts.posture_failed contains fact("target.verdict", input.target.verdict, ["passed"])

facts.posture_insufficient contains fact("identity.attestation", input.identity.attestation, needs("attestation"))

facts.posture_insufficient contains fact("target.attestation", input.target.attestation, needs("attestation"))

facts.tier_insufficient contains fact("identity.tier", input.identity.tier, needs("tiers"))

facts.segment_forbidden contains fact("identity.segment", input.identity.segment, needs("segments"))

facts.segment_forbidden contains fact(
	"target.segment", input.target.segment,
	object.get(data.workspace.segments, input.identity.segment, []),
)

facts.staleness_exceeded contains fact("staleness", input.staleness, requirements.tolerated)

needs(requirement) := object.get(requirements.route, requirement, [])

fact(name, found, needed) := {"fact": name, "found": found, "needs": needed}

matching_denies contains {"id": deny.id, "why": deny.why, "source": "grants.yaml"} if {
	some deny in data.workspace.denies[input.route]
	denying.applies(deny)
}

matching_denies contains object.union({"id": "", "why": ""}, object.union(deny, {"source": "own rule"})) if {
	some deny in data.sallyport.custom.deny
}

# Grants on this route, those first that lack least. A grant of a role that the caller does not hold lacks the role.
misses contains [count(lacks), grant.id, {"grant": grant.id, "role": role, "expires": grant.expires, "lacks": lacks}] if {
	some role, grants in data.workspace.grants[input.route]
	some grant in grants
	lacks := sort(lacking(role, grant))
	count(lacks) > 0
}

lacking(role, grant) := {what | some what in ["role", "path", "method", "site", "tier", "time"]; lack(what, role, grant)}

lack("role", role, _) if not role in input.identity.roles

lack("path", _, grant) if not matching.path(grant)

lack("method", _, grant) if not matching.method(grant)

lack("site", _, grant) if not matching.site(grant)

lack("tier", _, grant) if not matching.tier(grant)

lack("time", _, grant) if grant.expires <= input.now
