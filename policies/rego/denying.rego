# Explicit denies override every grant. There are two sources: `denies` in grants.yaml, and the security team's own rules,
# which add to `deny` in package `sallyport.custom`. Own rules can only take away, never allow.
package sallyport.denying

import data.sallyport.matching
import data.sallyport.segments

overridden if {
	some deny in data.workspace.denies[input.route]
	applies(deny)
}

overridden if {
	some _ in data.sallyport.custom.deny
}

# A deny applies when everything that it names is so.
applies(deny) if {
	matching.path(deny)
	matching.method(deny)
	matching.site(deny)
	matching.tier(deny)
	kind(deny)
	role(deny)
	segment(deny)
	name(deny)
}

kind(deny) if not deny.kinds

kind(deny) if input.identity.kind in deny.kinds

role(deny) if not deny.roles

role(deny) if {
	some held in input.identity.roles
	held in deny.roles
}

segment(deny) if not deny.segments

segment(deny) if segments.caller_in(deny.segments)

# What a deny that does name identities asks is in denying_names.rego.
name(deny) if not deny.names
