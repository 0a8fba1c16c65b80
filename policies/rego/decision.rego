# METADATA
# title: The decision
# description: |
#   Where a decision is made, and in which order. Read this file first, then:
#     requirements.rego  what a route asks of whoever uses it
#     denying.rego       explicit denies, which override every grant
#     granting.rego      grants, and which of them decides
#     segments.rego      which segments both ends are in, and which reach which; selectors are in selecting*.rego
#     matching.rego      how a grant or a deny is compared with a request
#     own_api.rego       who may call Sallyport's own API
#     explain.rego       for people: what failed, and which grants came near
#   Laws:
#     - Nothing is allowed but by a grant (or, for our own API, by the role table). No rule here allows by default.
#     - The decision reads no clock. It picks the grant that ends last and names its end as `deadline`;
#       the gateway refuses what is past its deadline. So an answer can be kept until then.
#     - What is looked up is indexed by route and role when a revision is built: see schemas/data/.
# scope: subpackages
# schemas:
#   - input: schema.input
#   - data.workspace.routes: schema.data.routes
#   - data.workspace.grants: schema.data.grants
#   - data.workspace.denies: schema.data.denies
#   - data.workspace.segments: schema.data.segments
#   - data.workspace.selectors: schema.data.selectors
#   - data.workspace.api: schema.data.api
package sallyport

import data.sallyport.denying
import data.sallyport.granting
import data.sallyport.own_api
import data.sallyport.requirements

# METADATA
# description: The answer to one request. `policies.model.parse_answer` refuses any other shape.
# scope: document
# entrypoint: true
decision := own_api.answer if {
	own_api.asked
} else := permit if {
	permit
} else := {"allow": false, "reasons": ["route_unknown"]} if {
	not requirements.route
} else := {"allow": false, "reasons": refusals}

permit := {
	"allow": true,
	"reasons": ["granted"],
	"grant": grant.id,
	"deadline": grant.expires,
	"obligations": grant.obligations,
} if {
	count(requirements.failed) == 0
	not denying.overridden
	grant := granting.best
}

# Every reason that stands against this request, by precedence. The first one goes outward.
refusals := array.concat(
	[code | some [_, code] in sort(requirements.failed)],
	array.concat([code | denying.overridden; code := "deny_override"], [code | code := granting.refusal]),
)
