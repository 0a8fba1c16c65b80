package sallyport.segments_test

import data.sallyport
import data.sallyport.fixture_test
import data.sallyport.fixture_test.but
import data.sallyport.fixture_test.node
import data.sallyport.fixture_test.operator
import data.sallyport.segments

# Segments `web` and `cache` have nodes by their inventory record alone, the others by selector.
workspace := {
	"api": fixture_test.workspace.api,
	"routes": {
		"shell": {"type": "stream", "class": "standard", "kinds": ["node", "operator"], "attestation": ["virtual"]},
		"query": {
			"type": "stream", "class": "standard", "kinds": ["node"], "attestation": ["virtual"],
			"segments": ["web", "report"], "to": ["database"],
		},
		"plane": {"type": "http", "class": "standard", "kinds": ["node"], "attestation": ["virtual"], "segments": ["database"]},
	},
	"segments": {
		"web": ["database"], "cache": ["web"], "database": ["cache"], "report": [],
		"north": ["north"], "small": ["small"], "attic": ["attic"],
	},
	"selectors": {
		"by_label": {"the-label": {
			"db": [{"segment": "database", "reaches": ["cache"], "tiers": [1, 2], "regions": ["eu"]}],
			"replica": [{"segment": "database", "reaches": ["cache"], "tiers": [1, 2], "regions": ["eu"]}],
		}},
		"by_site": {"s1": [{"segment": "attic", "reaches": ["attic"], "labels": {"the-label": ["fan"]}, "sites": ["s1", "s2"]}]},
		"by_region": {"north": [{"segment": "north", "reaches": ["north"]}]},
		"by_tier": [[], [], [], [{"segment": "small", "reaches": ["small"]}]],
		"of": {
			"database": {"labels": {"the-label": ["db", "replica"]}, "tiers": [1, 2], "regions": ["eu"]},
			"attic": {"labels": {"the-label": ["fan"]}, "sites": ["s1"]},
			"north": {"regions": ["north"]},
			"small": {"tiers": [3]},
		},
	},
	"grants": {
		"shell": {"agent": [{"id": "s", "expires": 2000, "obligations": []}]},
		"query": {"agent": [{"id": "q", "expires": 2000, "obligations": []}]},
		"plane": {"agent": [{"id": "p", "expires": 2000, "obligations": [], "methods": ["GET"], "paths": [["version"]], "patterns": []}]},
	},
	"denies": {"plane": [{"id": "not-north", "why": "Under repair.", "segments": ["north"]}]},
}

decide(route, identity, target) := answer if {
	answer := sallyport.decision with data.workspace as workspace
		with input as but({"route": route, "identity": identity, "target": object.union(node, target)})
}

explain(route, identity, target) := answer if {
	answer := sallyport.explain with data.workspace as workspace
		with input as but({"route": route, "identity": identity, "target": object.union(node, target)})
}

web := {"segment": "web"}

db := {"segment": "", "labels": {"the-label": "db"}}

test_a_target_by_selector if {
	decide("shell", web, db).allow
	decide("shell", web, object.union(db, {"labels": {"the-label": "replica", "other": "x"}})).allow
	decide("shell", {"segment": "cache"}, db).reasons == ["segment_forbidden"]
}

test_all_that_a_selector_names_must_hold if {
	every change in [{"labels": {}}, {"labels": {"the-label": "d"}}, {"labels": {"other": "db"}}, {"tier": 3}, {"region": "us"}] {
		answer := decide("shell", web, json.patch(object.union(node, db), [{"op": "replace", "path": key, "value": value} |
			some key, value in change
		]))
		answer.reasons == ["segment_forbidden"]
	}
}

test_a_caller_by_selector if {
	decide("shell", db, {"segment": "cache"}).allow
	decide("shell", db, db).reasons == ["segment_forbidden"]
}

test_the_inventory_s_segment_holds_beside_a_selector_s if {
	both := object.union(db, web)
	decide("shell", both, {"segment": "cache"}).allow
	decide("shell", both, db).allow
	decide("shell", {"segment": "cache"}, both).allow
	decide("shell", {"segment": "small"}, both).reasons == ["segment_forbidden"]
}

test_by_region_by_tier_by_site if {
	every place in [{"region": "north"}, {"tier": 3}, {"site": "s1", "labels": {"the-label": "fan"}}] {
		there := object.union({"segment": ""}, place)
		decide("shell", there, there).allow
		decide("shell", there, {"segment": ""}).reasons == ["segment_forbidden"]
		decide("shell", {"segment": ""}, there).reasons == ["segment_forbidden"]
	}
	without := {"segment": "", "site": "s1", "labels": {"the-label": "nest"}}
	decide("shell", without, without).reasons == ["segment_forbidden"]
}

test_what_is_left_of_a_selector_is_asked if {
	row := {"sites": ["s1"], "regions": ["eu"], "tiers": [1], "labels": {"the-label": ["a"]}}
	one := {"site": "s1", "region": "eu", "tier": 1, "labels": {"the-label": "a"}}
	segments.fits(row, one)
	every change in [{"site": "s2"}, {"region": "us"}, {"tier": 2}, {"labels": {"the-label": "b"}}] {
		not segments.fits(row, object.union(one, change))
	}
}

test_selectors_select_nodes_alone if {
	decide("shell", object.union(operator, {"roles": ["agent"], "region": "north"}), {"region": "north"}).reasons == ["segment_forbidden"]
}

test_a_route_names_the_segments_it_takes_and_leads_to if {
	decide("query", web, db).allow
	decide("query", {"segment": "report"}, db).reasons == ["segment_forbidden"]
	decide("query", {"segment": "cache"}, {"segment": "web"}).reasons == ["segment_forbidden"]
	decide("shell", {"segment": "cache"}, {"segment": "web"}).allow
}

test_the_way_leads_from_a_segment_that_the_route_takes_to_one_that_it_leads_to if {
	# `database` reaches `cache`, but this route does not lead there; `web` reaches `database`, but that is not the target.
	both := object.union(db, web)
	decide("query", both, object.union(db, {"segment": "cache"})).allow
	decide("query", both, {"segment": "cache"}).reasons == ["segment_forbidden"]
	decide("query", {"segment": "database"}, {"segment": "cache"}).reasons == ["segment_forbidden"]
}

test_callers_of_an_http_route if {
	decide("plane", db, {}).allow
	decide("plane", {"segment": ""}, {}).reasons == ["segment_forbidden"]
}

test_a_deny_of_a_segment_finds_those_it_selects if {
	decide("plane", {"segment": "database", "region": "north"}, {}).reasons == ["deny_override"]
	decide("plane", {"segment": "database"}, {}).allow
}

test_explain_says_what_put_a_node_in_a_segment if {
	explain("shell", web, object.union(db, {"segment": "cache"})).segments == {
		"caller": {"web": "inventory"},
		"target": {"cache": "inventory", "database": workspace.selectors.of.database},
		"ways": [{"from": "web", "to": "database"}],
	}
	explain("shell", object.union(db, {"segment": "database"}), {"segment": ""}).segments == {
		"caller": {"database": "inventory"},
		"target": {}, "ways": [],
	}
	explain("shell", db, {"segment": "cache"}).segments.caller == {"database": workspace.selectors.of.database}
}

test_explain_says_nothing_of_segments_where_they_do_not_matter if {
	document := sallyport.explain with data.workspace as fixture_test.workspace with input as but({})
	document.segments == {"caller": {}, "target": {}, "ways": []}
	explain("plane", db, {}).segments == {"caller": {"database": workspace.selectors.of.database}, "target": {}, "ways": []}
}

test_explain_says_that_the_route_takes_another_way if {
	explain("query", object.union(db, web), {"segment": "cache"}).failed == [
		{"fact": "target.segment", "found": "cache", "needs": ["database"]},
		{"fact": "target.to", "found": "cache", "needs": ["database"]},
	]
}

test_explain_says_which_segments_were_found if {
	explain("query", object.union(db, {"segment": "north"}), {"segment": "cache"}).failed == [
		{"fact": "identity.segment", "found": "database, north", "needs": ["web", "report"]},
		{"fact": "target.to", "found": "cache", "needs": ["database"]},
	]
	explain("shell", web, object.union(db, {"tier": 3})).failed == [{"fact": "target.segment", "found": "small", "needs": ["database"]}]
	every target in [db, {"segment": "database"}] {
		explain("query", {"segment": "report"}, target).failed == [{"fact": "target.segment", "found": "database", "needs": []}]
	}
}
