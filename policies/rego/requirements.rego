# What a route asks of whoever uses it, before any grant is looked at.
# Each line of `failed` is one requirement: its precedence, its reason code, and the condition that was not met.
# A fact that is missing meets no condition.
package sallyport.requirements

import data.sallyport.segments

route := data.workspace.routes[input.route]

failed contains [1, "kind_not_allowed"] if not kind_allowed

failed contains [2, "posture_failed"] if not posture_passed

failed contains [3, "posture_insufficient"] if not attested

failed contains [4, "tier_insufficient"] if not tier_allowed

failed contains [5, "segment_forbidden"] if not segment_allowed

failed contains [6, "staleness_exceeded"] if not fresh_enough

# 1. The route names the kinds of identity that may use it.
kind_allowed if input.identity.kind in route.kinds

# 2. A failed attestation closes everything, whatever the kind. On a stream, that of the target too.
posture_passed if {
	input.identity.verdict == "passed"
	route.type == "http"
}

posture_passed if {
	input.identity.verdict == "passed"
	input.target.verdict == "passed"
}

# 3. Nodes must have proven themselves by one of the route's classes of TPM. `none` is among them only where a route
# says so; in the production profile `hardware` is the only one. Operators, services and gateways hold no TPM of a node.
attested if {
	input.identity.kind != "node"
	route.type == "http"
}

attested if {
	input.identity.attestation in route.attestation
	route.type == "http"
}

attested if {
	input.identity.kind != "node"
	input.target.attestation in route.attestation
}

attested if {
	input.identity.attestation in route.attestation
	input.target.attestation in route.attestation
}

# 4. Tiers are a matter of nodes. A route without `tiers` takes all.
tier_allowed if not route.tiers

tier_allowed if input.identity.kind != "node"

tier_allowed if input.identity.tier in route.tiers

# 5. A route without `segments` takes callers from all, a stream without `to` targets in all; but a stream always needs a
# segment of the caller's that reaches one of the target's.
segment_allowed if {
	caller_segment_allowed
	route.type == "http"
}

segment_allowed if {
	caller_segment_allowed
	segments.reached
}

caller_segment_allowed if not route.segments

caller_segment_allowed if {
	input.identity.kind != "node"
	input.identity.segment == ""
}

caller_segment_allowed if segments.caller_in(route.segments)

# 6. How old the gateway's facts may be: none but fresh for a `critical` route, stale for a `standard` one, any age for a
# `tolerant` one, where only the ends of certificate, attestation and grant close it.
fresh_enough if input.staleness in tolerated

tolerated := ["fresh", "stale"] if {
	route.class == "standard"
} else := ["fresh", "stale", "expired"] if {
	route.class == "tolerant"
} else := ["fresh"]
