package sallyport.granting_test

import data.sallyport
import data.sallyport.fixture_test.but
import data.sallyport.fixture_test.workspace

decide(request, identity) := answer if {
	answer := sallyport.decision with input as but({"request": request, "identity": identity})
		with data.workspace as workspace
}

allowed(path) if decide({"path": path}, {}).allow

reasons(request, identity) := decide(request, identity).reasons

test_no_grant_on_the_route if {
	answer := sallyport.decision with input as but({"route": "empty"}) with data.workspace as workspace
	answer.reasons == ["no_grant"]
}

test_role_missing if {
	reasons({}, {"roles": []}) == ["role_missing"]
	reasons({}, {"roles": ["stranger"]}) == ["role_missing"]
}

test_literal_path if {
	allowed(["version"])
	not allowed([])
	not allowed(["version", "x"])
	not allowed(["Version"])
	reasons({"path": ["other"]}, {}) == ["path_not_granted"]
}

test_a_star_is_exactly_one_segment if {
	allowed(["kv", "x"])
	not allowed(["kv"])
	not allowed(["kv", "x", "y"])
	not allowed(["vk", "x"])
}

test_a_star_is_no_empty_segment if not allowed(["kv", ""])

test_an_open_pattern_covers_the_folder_and_what_is_below if {
	allowed(["files"])
	allowed(["files", "a", "b", "c"])
	not allowed(["file"])
	not allowed(["a", "files"])
}

test_a_segment_that_holds_a_slash_is_one_segment if not allowed(["files/a"])

test_method if reasons({"method": "PUT"}, {}) == ["method_not_granted"]

test_an_upgrade_is_no_get if {
	reasons({"upgrade": "websocket"}, {}) == ["method_not_granted"]
	reasons({"path": ["exec"]}, {"roles": ["console"]}) == ["method_not_granted"]
	decide({"path": ["exec"], "upgrade": "websocket"}, {"roles": ["console"]}).allow
}

test_site if {
	reasons({"method": "DELETE", "path": ["kv", "a"]}, {}) == ["site_not_granted"]
	decide({"method": "DELETE", "path": ["kv", "a"]}, {"site": "oslo"}).grant == "abroad"
}

test_tier if {
	reasons({"method": "POST", "path": ["kv", "a"]}, {}) == ["tier_insufficient"]
	decide({"method": "POST", "path": ["kv", "a"]}, {"tier": 3}).grant == "small"
}
