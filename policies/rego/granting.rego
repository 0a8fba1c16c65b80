# Grants: role × route × paths × methods × sites × tiers, each with an end.
package sallyport.granting

import data.sallyport.matching

# The grant that decides: of those that cover the request, the one that ends last, then the one whose id sorts last.
# Its obligations are the ones that hold.
best := max([[grant.expires, grant.id, grant] |
	some grant in held
	covers(grant)
])[2]

covers(grant) if {
	matching.path(grant)
	matching.method(grant)
	matching.site(grant)
	matching.tier(grant)
}

# What the caller's roles hold on this route.
held := [grant |
	some role in input.identity.roles
	some grant in data.workspace.grants[input.route][role]
]

# Why no grant covers the request: the most precise reason that is true.
refusal := "no_grant" if {
	not data.workspace.grants[input.route]
} else := "role_missing" if {
	count(held) == 0
} else := "path_not_granted" if {
	count(on_path) == 0
} else := "method_not_granted" if {
	count(with_method) == 0
} else := "site_not_granted" if {
	count(at_site) == 0
} else := "tier_insufficient" if {
	not best
}

on_path := [grant | some grant in held; matching.path(grant)]

with_method := [grant | some grant in on_path; matching.method(grant)]

at_site := [grant | some grant in with_method; matching.site(grant)]
