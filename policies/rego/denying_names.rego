# The one rule that reads an identity's name. A revision in which no deny names identities is built without it, so that
# identities which are alike share their decisions (policies/lifecycle/workspace.py).
package sallyport.denying

name(deny) if input.identity.name in deny.names
