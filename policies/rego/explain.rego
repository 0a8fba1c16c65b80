# For people: the facts behind a decision. Not cached, so it may read the clock. `policies/explain.py` makes sentences
# and remedies of this document.
package sallyport

import data.sallyport.denying
import data.sallyport.granting
import data.sallyport.matching
import data.sallyport.own_api
import data.sallyport.requirements
import data.sallyport.segments

# METADATA
# scope: document
# entrypoint: true
explain := {
	"decision": decision,
	"failed": [fact | some [_, code] in sort(unmet); some fact in sort(facts[code]); not fact.found in fact.needs],
	"segments": placed,
	"denies": sort(matching_denies),
	"near_misses": array.slice([miss | some [_, _, _, miss] in sort(misses)], 0, 5),
	"covered_by": [grant.id | grant := granting.best],
	"roles_that_may": sort(roles_that_may),
}

unmet := {[2, "posture_failed"] | input.identity.verdict != "passed"} if {
	own_api.asked
} else := requirements.failed

# What each requirement compares: the fact that was found, and what the route asks for.
facts.kind_not_allowed contains fact("identity.kind", input.identity.kind, requirements.route.kinds)

facts.posture_failed contains fact("identity.verdict", input.identity.verdict, ["passed"])

facts.posture_failed contains fact("target.verdict", input.target.verdict, ["passed"])

facts.posture_insufficient contains fact(
	"identity.attestation", input.identity.attestation,
	requirements.route.attestation,
)

facts.posture_insufficient contains fact(
	"target.attestation", input.target.attestation,
	requirements.route.attestation,
)

facts.tier_insufficient contains fact("identity.tier", input.identity.tier, requirements.route.tiers)

facts.segment_forbidden contains fact("identity.segment", listed(segments.caller), requirements.route.segments) if {
	not segments.caller_in(requirements.route.segments)
}

facts.segment_forbidden contains fact("target.to", listed(segments.target), requirements.route.to) if {
	input.target
	not segments.target_in(requirements.route.to)
}

facts.segment_forbidden contains fact("target.segment", listed(segments.target), sort(reached)) if {
	input.target
	requirements.caller_segment_allowed
	not segments.target_in(reached)
}

facts.staleness_exceeded contains fact("staleness", input.staleness, requirements.tolerated)

reached contains name if {
	some here, _ in segments.caller
	segments.from(here)
	some name in data.workspace.segments[here]
	segments.to(name)
}

listed(names) := concat(", ", sort(object.keys(names)))

# Where the route asks about segments: those of both ends, what put them there, and the ways between them.
placed := {"caller": segments.caller, "target": segments.target, "ways": sort(segments.ways)} if {
	requirements.route.type == "stream"
} else := {"caller": segments.caller, "target": {}, "ways": []} if {
	requirements.route.segments
} else := {"caller": {}, "target": {}, "ways": []}

fact(name, found, needs) := {"fact": name, "found": found, "needs": needs}

matching_denies contains {"id": deny.id, "why": deny.why} if {
	some deny in data.workspace.denies[input.route]
	denying.applies(deny)
}

matching_denies contains {"id": "", "why": why} if some why in data.sallyport.custom.deny

# Grants on this route, those first that lack least. To lack the role counts double: it is the caller that would change.
# Among equals, the one whose paths lead furthest along with the request's.
misses contains [weight, far(lacks, grant), grant.id, miss] if {
	some role, grants in data.workspace.grants[input.route]
	some grant in grants
	lacks := [thing | some thing in ["role", "path", "method", "site", "tier", "time"]; lack(thing, role, grant)]
	count(lacks) > 0
	weight := count(lacks) + count([thing | some thing in lacks; thing == "role"])
	miss := {"grant": grant.id, "role": role, "expires": grant.expires, "lacks": lacks, "covers": covers(grant)}
}

# How many of the request's segments lie behind the point where it leaves the grant's nearest path.
far(lacks, grant) := count(input.request.path) - max(array.concat([0], shared)) if {
	"path" in lacks
	ways := array.concat(object.get(grant, "paths", []), [pattern.segments | some pattern in grant.patterns])
	shared := [count([i | some i, _ in way; matching.segments_fit(array.slice(way, 0, i + 1))]) | some way in ways]
} else := 0

covers(grant) := object.filter(grant, ["paths", "patterns", "methods", "sites", "tiers"])

lack("role", role, _) if not role in input.identity.roles

lack("path", _, grant) if not matching.path(grant)

lack("method", _, grant) if not matching.method(grant)

lack("site", _, grant) if not matching.site(grant)

lack("tier", _, grant) if not matching.tier(grant)

lack("time", _, grant) if grant.expires <= input.now

# Of our own API: the roles that may call this route.
roles_that_may contains role if {
	own_api.asked
	some role, entries in data.workspace.api.roles
	some entry in entries
	entry in own_api.names
}
