package sallyport.own_api_test

import data.sallyport
import data.sallyport.fixture_test.but
import data.sallyport.fixture_test.operator
import data.sallyport.fixture_test.workspace

decide(route, identity) := answer if {
	answer := sallyport.decision with input as but({"route": route, "identity": identity}) with data.workspace as workspace
}

call(route, roles) := decide(route, object.union(operator, {"roles": roles}))

test_a_verb_in_every_area if call("api.inventory.list", ["viewer"]) == {
	"allow": true, "reasons": ["granted"], "grant": "role:viewer",
}

test_one_route if {
	call("api.decisions.explain", ["viewer"]).allow
	call("api.decisions.erase", ["viewer"]).reasons == ["role_missing"]
}

test_a_whole_area if {
	call("api.policy.publish", ["security"]).allow
	call("api.policy.publish", ["viewer"]).reasons == ["role_missing"]
	call("api.policy.list", ["security", "viewer"]).grant == "role:viewer"
}

test_without_a_role_nothing if call("api.inventory.list", []).reasons == ["role_missing"]

test_a_name_that_only_looks_alike if {
	not call("api.inventory.listen", ["viewer"]).allow
	not call("api.policyx.publish", ["security"]).allow
	not call("apiXinventory.list", ["viewer"]).allow
	not call("api.", ["viewer", "security"]).allow
}

test_kinds_get_what_their_kind_needs_whatever_their_roles if {
	decide("api.renew", {}).grant == "kind:node"
	decide("api.attest", {}).grant == "kind:node"
	decide("api.attest", {"kind": "operator", "roles": ["security"]}).reasons == ["role_missing"]
	decide("api.feed.follow", {"kind": "gateway"}).grant == "kind:gateway"
	decide("api.feed.follow", {}).reasons == ["kind_not_allowed"]
	decide("api.inventory.list", {"roles": ["viewer"]}).reasons == ["kind_not_allowed"]
}

test_a_service_has_roles if decide("api.inventory.list", {"kind": "service", "roles": ["viewer"]}).allow

test_a_failed_posture_denies if decide("api.renew", {"verdict": "failed"}).reasons == ["posture_failed"]

test_a_failed_posture_may_prove_itself_anew if {
	decide("api.attest", {"verdict": "failed"}).allow
	decide("api.attest", {"verdict": "failed", "kind": "operator"}).reasons == ["role_missing"]
}

test_own_rules_deny if {
	answer := sallyport.decision with input as but({"route": "api.renew"}) with data.workspace as workspace
		with data.sallyport.custom.deny as {"Not on Sundays."}
	answer.reasons == ["deny_override"]
}
