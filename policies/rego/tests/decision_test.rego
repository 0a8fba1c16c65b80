package sallyport.decision_test

import data.sallyport
import data.sallyport.fixture_test.but
import data.sallyport.fixture_test.workspace

decide(changes) := answer if {
	answer := sallyport.decision with input as but(changes) with data.workspace as workspace
}

reasons(changes) := decide(changes).reasons

test_a_grant_allows_and_names_its_end_and_obligations if {
	decide({}) == {
		"allow": true, "reasons": ["granted"], "grant": "reads", "deadline": 2000,
		"obligations": [{"kind": "rate", "per_second": 5, "burst": 9}],
	}
}

test_nothing_is_allowed_without_data if {
	not sallyport.decision.allow with input as but({}) with data.workspace as {}
}

test_nothing_is_allowed_without_input if {
	not sallyport.decision.allow with input as {} with data.workspace as workspace
}

test_an_unknown_route_is_denied if reasons({"route": "nowhere"}) == ["route_unknown"]

test_the_decision_does_not_read_the_clock if decide({"now": 99999}) == decide({"now": 0})

test_the_grant_that_ends_last_decides_then_the_last_id if {
	decide({"identity": {"roles": ["agent", "late"]}}).grant == "later-b"
}

test_all_reasons_are_told_by_precedence if {
	reasons({
		"route": "vault", "staleness": "stale",
		"identity": {"kind": "node", "verdict": "failed", "tier": 3, "segment": "lab", "roles": []},
	}) == [
		"posture_failed", "posture_insufficient", "tier_insufficient", "segment_forbidden", "staleness_exceeded",
		"role_missing",
	]
}
