package sallyport.denying_test

import data.sallyport
import data.sallyport.fixture_test.but
import data.sallyport.fixture_test.workspace

decide(changes) := answer if {
	answer := sallyport.decision with input as but(changes) with data.workspace as workspace
}

# Everything that the deny `not-these` names.
suspect := {"name": "n7", "segment": "lab", "tier": 2}

test_a_deny_overrides_a_grant if {
	decide({"request": {"path": ["files", "x"]}}).allow
	decide({"request": {"path": ["files", "secret", "x"]}}).reasons == ["deny_override"]
}

test_a_deny_is_told_before_a_missing_grant if {
	decide({"request": {"path": ["files", "secret"]}, "identity": {"roles": []}}).reasons == ["deny_override", "role_missing"]
}

test_a_deny_applies_when_everything_it_names_is_so if {
	decide({"identity": suspect}).reasons == ["deny_override"]
	every change in [
		{"name": "n1"}, {"segment": "edge"}, {"tier": 1}, {"site": "oslo"},
		{"kind": "operator"}, {"roles": ["late"]},
	] {
		decide({"identity": object.union(suspect, change)}).allow
	}
}

test_a_deny_of_a_method if {
	decide({"identity": suspect, "request": {"method": "HEAD"}}).allow
}

test_own_rules_deny if {
	answer := sallyport.decision with input as but({}) with data.workspace as workspace
		with data.sallyport.custom.deny as {"Not on Sundays."}
	answer.reasons == ["deny_override"]
}
