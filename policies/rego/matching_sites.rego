# The one rule that reads an identity's site. A revision in which no grant and no deny names sites is built without it, so
# that identities which are alike but for their site share their decisions (policies/lifecycle/workspace.py).
package sallyport.matching

site(row) if input.identity.site in row.sites
