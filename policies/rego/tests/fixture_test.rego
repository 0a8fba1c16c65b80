# What the tests below decide about. Each test changes one thing of `asked`.
package sallyport.fixture_test

workspace := {
	"routes": {
		"plane": {"type": "http", "class": "standard", "kinds": ["node", "operator"], "attestation": ["hardware", "virtual"]},
		"vault": {
			"type": "http", "class": "critical", "kinds": ["node"], "attestation": ["hardware"],
			"tiers": [1, 2], "segments": ["edge"],
		},
		"mirror": {"type": "http", "class": "tolerant", "kinds": ["node"], "attestation": ["hardware", "virtual", "none"]},
		"shell": {
			"type": "stream", "class": "standard", "kinds": ["node", "operator"],
			"attestation": ["hardware", "virtual"], "segments": ["edge"],
		},
		"empty": {"type": "http", "class": "standard", "kinds": ["node"], "attestation": ["hardware", "virtual"]},
	},
	"grants": {
		"plane": {
			"agent": [
				{
					"id": "reads", "expires": 2000, "obligations": [{"kind": "rate", "per_second": 5, "burst": 9}],
					"methods": ["GET", "HEAD"], "paths": [["version"]],
					"patterns": [
						{"segments": ["kv", "*"], "open": false},
						{"segments": ["files"], "open": true},
					],
				},
				{
					"id": "abroad", "expires": 3000, "obligations": [], "sites": ["oslo"],
					"methods": ["DELETE"], "paths": [["kv", "a"]], "patterns": [],
				},
				{
					"id": "small", "expires": 3000, "obligations": [], "tiers": [3],
					"methods": ["POST"], "paths": [["kv", "a"]], "patterns": [],
				},
			],
			"late": [
				{"id": "later", "expires": 9000, "obligations": [], "methods": ["GET"], "paths": [["version"]], "patterns": []},
				{"id": "later-b", "expires": 9000, "obligations": [], "methods": ["GET"], "paths": [["version"]], "patterns": []},
			],
			"console": [{
				"id": "sockets", "expires": 2000, "obligations": [],
				"methods": ["UPGRADE"], "paths": [["exec"]], "patterns": [],
			}],
		},
		"vault": {"agent": [{"id": "v", "expires": 2000, "obligations": [], "methods": ["GET"], "paths": [[]], "patterns": []}]},
		"mirror": {"agent": [{"id": "m", "expires": 2000, "obligations": [], "methods": ["GET"], "paths": [[]], "patterns": []}]},
		"shell": {"agent": [{"id": "s", "expires": 2000, "obligations": []}]},
	},
	"denies": {"plane": [
		{"id": "no-secrets", "why": "Secrets stay home.", "paths": [], "patterns": [{"segments": ["files", "secret"], "open": true}]},
		{
			"id": "not-these", "why": "Under inquiry.", "kinds": ["node"], "roles": ["agent"], "segments": ["lab"],
			"names": ["n7", "n8"], "sites": ["bergen"], "tiers": [2], "methods": ["GET"],
		},
	]},
	"segments": {"edge": ["edge", "lab"], "lab": []},
	"api": {
		"roles": {"viewer": ["*.list", "decisions.explain"], "security": ["policy.*"]},
		"kinds": {"node": ["renew", "attest"], "gateway": ["feed.*"]},
	},
}

node := {
	"id": "spiffe://t/node/n1", "kind": "node", "name": "n1", "roles": ["agent"], "tier": 1, "region": "eu",
	"site": "bergen", "segment": "edge", "labels": {}, "versions": {}, "attestation": "virtual", "verdict": "passed",
}

asked := {
	"now": 1000,
	"identity": node,
	"route": "plane",
	"request": {"method": "GET", "action": "get", "host": "h", "path": ["version"], "query": [], "upgrade": ""},
	"staleness": "fresh",
}

# `asked` with other values in its identity, its request or beside them.
but(changes) := changed if {
	identity := object.union(asked.identity, object.get(changes, "identity", {}))
	request := object.union(asked.request, object.get(changes, "request", {}))
	changed := object.union(object.union(asked, changes), {"identity": identity, "request": request})
}

operator := object.union(node, {"kind": "operator", "roles": ["viewer"], "tier": 0, "segment": "", "attestation": "none"})
