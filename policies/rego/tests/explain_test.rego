package sallyport.explain_test

import data.sallyport
import data.sallyport.fixture_test.but
import data.sallyport.fixture_test.node
import data.sallyport.fixture_test.operator
import data.sallyport.fixture_test.workspace

explain(changes) := document if {
	document := sallyport.explain with input as but(changes) with data.workspace as workspace
}

test_a_permit_has_nothing_that_failed if {
	document := explain({})
	document.decision.allow
	document.failed == []
	document.denies == []
	document.covered_by == [document.decision.grant]
	document.roles_that_may == []
}

test_failed_facts_say_what_was_found_and_needed if {
	explain({
		"route": "vault", "staleness": "stale", "request": {"path": []},
		"identity": {"verdict": "failed", "tier": 3, "segment": "lab"},
	}).failed == [
		{"fact": "identity.verdict", "found": "failed", "needs": ["passed"]},
		{"fact": "identity.attestation", "found": "virtual", "needs": ["hardware"]},
		{"fact": "identity.tier", "found": 3, "needs": [1, 2]},
		{"fact": "identity.segment", "found": "lab", "needs": ["edge"]},
		{"fact": "staleness", "found": "stale", "needs": ["fresh"]},
	]
}

test_the_kind if {
	explain({"identity": {"kind": "gateway"}}).failed == [{"fact": "identity.kind", "found": "gateway", "needs": ["node", "operator"]}]
}

test_the_target_of_a_stream if {
	target := object.union(node, {"verdict": "failed", "attestation": "none", "segment": "nowhere"})
	explain({"route": "shell", "target": target}).failed == [
		{"fact": "target.verdict", "found": "failed", "needs": ["passed"]},
		{"fact": "target.attestation", "found": "none", "needs": ["hardware", "virtual"]},
		{"fact": "target.segment", "found": "nowhere", "needs": ["edge", "lab"]},
	]
}

test_near_misses_come_nearest_first if {
	misses := explain({"now": 2500, "request": {"path": ["kv", "a"], "method": "DELETE"}, "identity": {"tier": 2}}).near_misses
	[[miss.grant, miss.lacks] | some miss in misses] == [
		["abroad", ["site"]],
		["reads", ["method", "time"]],
		["small", ["method", "tier"]],
		["later", ["role", "path", "method"]],
		["later-b", ["role", "path", "method"]],
	]
	misses[0].covers == {"methods": ["DELETE"], "paths": [["kv", "a"]], "patterns": [], "sites": ["oslo"]}
	misses[0].role == "agent"
}

test_of_paths_that_miss_the_one_that_leads_furthest_comes_first if {
	grants := [way("a", [["x"]], []), way("b", [["files", "b"]], []), way("c", [], ["files", "*", "c"]), way("d", [[]], [])]
	document := sallyport.explain with input as but({"request": {"path": ["files", "sacred", "d"]}})
		with data.workspace as object.union(workspace, {"grants": {"plane": {"agent": grants}}})
	[miss.grant | some miss in document.near_misses; miss.lacks == ["path"]] == ["c", "b", "a", "d"]
}

way(id, paths, segments) := {
	"id": id, "expires": 3000, "methods": ["GET"], "obligations": [],
	"paths": paths, "patterns": [{"segments": segments, "open": false}],
}

test_denies_give_their_ground if {
	document := sallyport.explain with input as but({"request": {"path": ["files", "secret"]}})
		with data.workspace as workspace
		with data.sallyport.custom.deny as {"Not on Sundays."}
	document.denies == [{"id": "", "why": "Not on Sundays."}, {"id": "no-secrets", "why": "Secrets stay home."}]
}

test_an_api_route_names_the_roles_that_may if {
	document := explain({"route": "api.policy.list", "identity": object.union(operator, {"roles": []})})
	document.roles_that_may == ["security", "viewer"]
	document.failed == []
	document.decision.reasons == ["role_missing"]
}

test_an_api_route_and_a_failed_posture if {
	explain({"route": "api.renew", "identity": {"verdict": "failed"}}).failed == [{
		"fact": "identity.verdict", "found": "failed", "needs": ["passed"],
	}]
}
