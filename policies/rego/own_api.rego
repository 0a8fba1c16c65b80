# Who may call Sallyport's own API: the authority's and the gateway's. Its routes are named `api.<area>.<verb>`.
# The table is api.yaml. It holds role definitions, not grants, and therefore no ends. What is not in it is denied.
package sallyport.own_api

import data.sallyport.denying

asked if startswith(input.route, "api.")

answer := {"allow": false, "reasons": ["posture_failed"]} if {
	not input.identity.verdict == "passed"
	not proves_anew
} else := {"allow": false, "reasons": ["deny_override"]} if {
	denying.overridden
} else := {"allow": true, "reasons": ["granted"], "grant": concat(":", ["role", role])} if {
	role := max(roles_that_may)
} else := {"allow": true, "reasons": ["granted"], "grant": concat(":", ["kind", input.identity.kind])} if {
	some entry in data.workspace.api.kinds[input.identity.kind]
	entry in names
} else := {"allow": false, "reasons": ["role_missing"]} if {
	by_role
} else := {"allow": false, "reasons": ["kind_not_allowed"]}

# By this route a node shows anew what it is. The authority itself refuses whoever's failure was not cleared.
proves_anew if input.route == "api.attest"

# People and services have roles here. Nodes and gateways get what their kind needs, whatever their roles are called.
by_role if input.identity.kind in {"operator", "service"}

roles_that_may contains role if {
	by_role
	some role in input.identity.roles
	some entry in data.workspace.api.roles[role]
	entry in names
}

# The entries of the table that mean this route: its own name, the whole area, the verb in every area.
names := {name, concat(".", [words[0], "*"]), concat(".", ["*", words[count(words) - 1]])}

name := trim_prefix(input.route, "api.")

words := split(name, ".")
