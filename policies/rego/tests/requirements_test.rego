package sallyport.requirements_test

import data.sallyport
import data.sallyport.fixture_test.but
import data.sallyport.fixture_test.node
import data.sallyport.fixture_test.operator
import data.sallyport.fixture_test.workspace

decide(changes) := answer if {
	answer := sallyport.decision with input as but(changes) with data.workspace as workspace
}

reasons(changes) := decide(changes).reasons

vault(identity) := {
	"route": "vault", "request": {"path": []},
	"identity": object.union({"attestation": "hardware"}, identity),
}

mirror(identity) := {"route": "mirror", "request": {"path": []}, "identity": identity}

shell(identity, target) := {
	"route": "shell", "request": {"path": [], "method": "CONNECT"}, "identity": identity,
	"target": object.union(node, target),
}

test_kind if {
	reasons({"identity": {"kind": "service"}}) == ["kind_not_allowed"]
	reasons({"identity": {"kind": "gateway"}}) == ["kind_not_allowed"]
}

test_a_failed_posture_denies_every_kind if {
	reasons({"identity": {"verdict": "failed"}}) == ["posture_failed"]
	reasons({"identity": object.union(operator, {"roles": ["agent"], "verdict": "failed"})}) == ["posture_failed"]
}

test_a_node_without_attestation_is_denied if reasons({"identity": {"attestation": "none"}}) == ["posture_insufficient"]

test_a_route_may_ask_for_hardware if {
	decide(vault({})).allow
	reasons(vault({"attestation": "virtual"})) == ["posture_insufficient"]
}

test_a_route_may_take_nodes_without_attestation if decide(mirror({"attestation": "none"})).allow

test_an_operator_needs_no_tpm if decide({"identity": object.union(operator, {"roles": ["agent"]})}).allow

test_tier if {
	decide(vault({"tier": 2})).allow
	reasons(vault({"tier": 3})) == ["tier_insufficient"]
}

test_what_is_no_node_has_no_tier if {
	not "tier_insufficient" in reasons(vault({"kind": "operator", "tier": 0}))
}

test_segment if reasons(vault({"segment": "lab"})) == ["segment_forbidden"]

test_a_node_without_segment_is_in_none if reasons(vault({"segment": ""})) == ["segment_forbidden"]

test_staleness_by_class if {
	reasons(object.union(vault({}), {"staleness": "stale"})) == ["staleness_exceeded"]
	decide({"staleness": "stale"}).allow
	reasons({"staleness": "expired"}) == ["staleness_exceeded"]
	decide(object.union(mirror({}), {"staleness": "expired"})).allow
}

test_staleness_of_no_class_is_denied if reasons({"staleness": "unheard-of"}) == ["staleness_exceeded"]

test_a_stream_between_nodes if decide(shell({}, {"segment": "lab"})).allow

test_a_stream_from_an_operator_needs_a_segment_that_reaches if {
	identity := object.union(operator, {"roles": ["agent"]})
	reasons(shell(identity, {})) == ["segment_forbidden"]
	decide(shell(object.union(identity, {"segment": "edge"}), {})).allow
}

test_a_stream_asks_the_same_of_its_target if {
	reasons(shell({}, {"verdict": "failed"})) == ["posture_failed"]
	reasons(shell({}, {"attestation": "none"})) == ["posture_insufficient"]
	reasons(shell({}, {"segment": "nowhere"})) == ["segment_forbidden"]
	reasons(shell({"segment": "lab"}, {})) == ["segment_forbidden"]
}

test_a_stream_without_target_is_denied if {
	reasons({"route": "shell", "request": {"path": []}}) == ["posture_failed", "posture_insufficient", "segment_forbidden"]
}
