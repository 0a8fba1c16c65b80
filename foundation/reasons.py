"""The closed vocabulary: every refusal has one of these codes, an outward HTTP status and a remedy.

A code is the member's name in lower case. Codes are an interface: they appear in responses, logs, metrics
and policies, so a code is never renamed and never reused. `docs/reference/reasons.md` is generated from here.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class _Text(NamedTuple):
    status: int
    meaning: str
    remedy: str


class Reason(Enum):
    """Why something was refused, or on what ground it was allowed."""

    # --- Decisions: permits ---------------------------------------------------------------------
    GRANTED = _Text(200, "a grant allows this", "nothing to do")
    BREAK_GLASS = _Text(200, "a break-glass credential allows this", "end the break-glass when it is over")

    # --- Decisions: denials by policy -----------------------------------------------------------
    NO_GRANT = _Text(403, "no grant allows this", "ask the security team for a grant of this role on this route")
    GRANT_EXPIRED = _Text(403, "the grant that allowed this has expired", "ask for the grant to be renewed")
    METHOD_NOT_GRANTED = _Text(403, "the grant does not cover this method", "widen the grant's methods or use another")
    PATH_NOT_GRANTED = _Text(403, "the grant does not cover this path", "widen the grant's paths or use another")
    SITE_NOT_GRANTED = _Text(403, "the grant does not cover the caller's site", "add the site to the grant")
    ROLE_MISSING = _Text(403, "the caller's role has no grant on this route", "give the identity a role that has one")
    KIND_NOT_ALLOWED = _Text(
        403, "this kind of identity may not use this route", "call with an identity of the right kind"
    )
    POSTURE_INSUFFICIENT = _Text(
        403,
        "the route asks for a stronger attestation than the caller has",
        "attest with a TPM of the class the route asks for",
    )
    POSTURE_FAILED = _Text(
        403, "the node's attestation failed", "inspect the node; an operator clears the failure after that"
    )
    SEGMENT_FORBIDDEN = _Text(403, "the segments do not allow this route", "add a route between the two segments")
    TIER_INSUFFICIENT = _Text(403, "the node's tier may not use this route", "use a node of a tier the route names")
    DENY_OVERRIDE = _Text(
        403, "an explicit deny overrides every grant", "remove the deny rule if it is no longer meant"
    )
    STALENESS_EXCEEDED = _Text(
        503, "the policy's facts are older than the route tolerates", "restore the link to the authority"
    )
    POLICY_DENIED = _Text(403, "the policy denies this", "see `sallyport explain` for the rule")

    # --- Decisions: denials by fixed rule, before or instead of policy ----------------------------
    IDENTITY_UNKNOWN = _Text(403, "the certificate's identity is not in the inventory", "enrol the node again")
    IDENTITY_REVOKED = _Text(
        403, "the identity or its certificate is revoked", "enrol again after the operator allows it"
    )
    IDENTITY_QUARANTINED = _Text(403, "the identity is in quarantine", "an operator releases it after inspection")
    CERTIFICATE_EXPIRED = _Text(403, "the certificate's validity has ended", "renew the certificate")
    CERTIFICATE_NOT_YET_VALID = _Text(
        403, "the certificate's validity has not begun", "check the clocks of node and authority"
    )
    CERTIFICATE_SUPERSEDED = _Text(403, "a newer certificate of this identity is in use", "use the newest certificate")
    ATTESTATION_EXPIRED = _Text(403, "the last attestation is too old", "renew: send a fresh quote")
    ROUTE_UNKNOWN = _Text(404, "no route matches this host and path", "add a route, or check the address")
    ROUTE_CHANGED = _Text(503, "the route leads elsewhere than when the stream began", "connect again")
    REVISION_MISSING = _Text(503, "no policy revision is loaded", "publish a policy revision")
    ENGINE_FAILED = _Text(503, "the policy engine failed", "look at the gateway's log; the decision was a denial")
    ENGINE_TIMEOUT = _Text(
        503, "the policy engine did not answer in time", "simplify the policy or raise its time limit"
    )
    ENGINE_OVERLOADED = _Text(
        503,
        "too many decisions wait for the policy engine",
        "simplify the policy of the routes that the log calls slow",
    )
    ENGINE_UNREACHABLE = _Text(503, "the policy server cannot be reached", "check that the OPA server is up")
    ENGINE_ANSWER_INVALID = _Text(
        503, "the policy engine's answer is not a decision", "mend the policy; it must answer by its schema"
    )
    DECISION_UNSTABLE = _Text(503, "the facts kept changing while this was decided", "try again")
    DECISION_UNRECORDED = _Text(503, "the decision could not be put on record", "free disk space for the decision log")

    # --- Requests that are no requests --------------------------------------------------------------
    REQUEST_MALFORMED = _Text(400, "the request is not well-formed HTTP", "send well-formed HTTP/1.1")
    REQUEST_AMBIGUOUS = _Text(
        400, "the request can be read in more than one way", "send one length, one Host, no folded lines"
    )
    PATH_AMBIGUOUS = _Text(
        400,
        "the path can be read in more than one way",
        "send a path without encoded slashes, dots or empty segments",
    )
    METHOD_UNSUPPORTED = _Text(501, "the method is not supported", "use a method that the route names")
    HEADERS_TOO_LARGE = _Text(431, "the header section is too large", "send fewer or smaller headers")
    URI_TOO_LONG = _Text(414, "the request target is too long", "send a shorter target")
    BODY_TOO_LARGE = _Text(413, "the body is larger than the route allows", "send a smaller body")
    REQUEST_TIMEOUT = _Text(408, "the request did not arrive in time", "send it faster")
    UPGRADE_REFUSED = _Text(
        400, "the upgrade is not allowed here", "ask for a protocol that the route names, with no body"
    )
    PROXY_HEADER_INVALID = _Text(
        400,
        "the connection does not begin with a valid PROXY v2 header",
        "send one, from a network that the settings name",
    )
    EXPECTATION_UNKNOWN = _Text(417, "the expectation is not 100-continue", "drop the Expect header")

    # --- Upstreams and capacity -----------------------------------------------------------------------
    UPSTREAM_UNREACHABLE = _Text(502, "the upstream cannot be reached", "check that the upstream is up")
    UPSTREAM_INVALID = _Text(502, "the upstream's answer is not well-formed HTTP", "check the upstream")
    UPSTREAM_TIMEOUT = _Text(504, "the upstream did not answer in time", "check the upstream's load")
    UPSTREAM_UNTRUSTED = _Text(
        502, "the upstream did not prove to be the one that policy names", "check its certificate and the pool's tls"
    )
    UPSTREAM_ADDRESS_REFUSED = _Text(
        502, "the upstream's name leads to an address that is not allowed", "check DNS; list the network in the pool"
    )
    UPSTREAM_UNHEALTHY = _Text(503, "no address of the upstream is in service", "see `sallyport upstream list`")
    UPSTREAM_OVERLOADED = _Text(503, "the upstream's circuit breaker is open", "try again later, or raise its bounds")
    OVERLOADED = _Text(503, "too much is under way", "try again after the time in Retry-After")
    RATE_LIMITED = _Text(429, "the caller's rate is used up", "try again after the time in Retry-After")
    CONNECTION_LIMIT = _Text(
        429, "the caller has too many connections open", "close some, or ask over those that are open"
    )
    SOURCE_RATE_LIMITED = _Text(
        429, "too many handshakes from this address", "connect less often, and keep connections"
    )
    CONNECTION_MEMORY = _Text(503, "too much is held for this connection", "read answers as fast as they are asked for")
    DRAINING = _Text(503, "this gateway is shutting down", "try another gateway")

    # --- Streams: why one was cut ---------------------------------------------------------------------
    CUT_BY_REVOCATION = _Text(
        403, "the identity was revoked while the stream was open", "enrol again after the operator allows it"
    )
    CUT_BY_CHANGE = _Text(
        403, "the policy or the identity's state changed while the stream was open", "see `sallyport explain`"
    )
    CUT_BY_DEADLINE = _Text(403, "trust in the stream's identity ended", "renew before the deadline")

    # --- The broker: streams between nodes ---------------------------------------------------------------
    TUNNEL_MALFORMED = _Text(400, "the tunnel's frames do not follow the protocol", "see docs/protocol.md")
    TUNNEL_FLOODED = _Text(
        429,
        "the tunnel's other side sends more frames that carry little or nothing than it may",
        "open streams less often",
    )
    TUNNEL_LOST = _Text(503, "the tunnel that carried the stream is gone", "open the stream again")
    STREAM_ABORTED = _Text(502, "one end broke the stream off", "look at that end: its program, or its network")
    STREAM_LIMIT = _Text(429, "too many streams are open over this tunnel", "close some first")
    TARGET_UNTRUSTED = _Text(
        403, "the target itself may not be trusted now", "see `sallyport explain` for what stands against the target"
    )
    TARGET_ABSENT = _Text(503, "no gateway holds a tunnel of the target", "check that its agent runs")
    SERVICE_UNREACHABLE = _Text(502, "the target's service does not answer", "check the service on the target")
    RELAY_REFUSED = _Text(503, "the gateway that holds the target's tunnel did not take the stream", "try again")

    # --- TLS and API callers -----------------------------------------------------------------------------
    CLIENT_CERTIFICATE_REQUIRED = _Text(
        401, "a client certificate is required", "present a certificate of this authority"
    )
    CLIENT_CERTIFICATE_INVALID = _Text(
        401, "the client certificate is not one of ours", "present a certificate of this authority"
    )
    TOKEN_NOT_BOUND = _Text(
        401,
        "the JWT is not bound to the client certificate",
        "ask for a token with cnf x5t#S256 (RFC 8705 §3.1)",
    )
    JWT_INVALID = _Text(401, "the JWT cannot be accepted", "ask the identity provider for a fresh one")
    API_ROUTE_UNKNOWN = _Text(404, "the API has no such route", "see docs/reference/openapi.json")
    API_METHOD_NOT_ALLOWED = _Text(405, "the API route has no such method", "see docs/reference/openapi.json")
    NOT_FOUND = _Text(404, "there is no such thing", "list what there is")
    CONFLICT = _Text(409, "the thing has changed or exists already", "read it again and repeat")

    # --- Messages, files, settings --------------------------------------------------------------------------
    MESSAGE_TOO_LARGE = _Text(413, "the message is larger than its cap", "send a smaller message")
    MESSAGE_MALFORMED = _Text(400, "the message does not follow its schema", "see docs/protocol.md")
    SETTING_INVALID = _Text(500, "a setting is not valid", "correct it in the settings' file")
    SETTING_FIXED = _Text(
        500, "this setting cannot change while the process serves", "restart to apply it, or put the old value back"
    )
    NEW_CODE_REFUSED = _Text(
        500, "the new version does not start", "see `sallyport serve --check`; the old version serves on"
    )
    SETTING_UNKNOWN = _Text(500, "there is no such setting", "remove it, or correct its spelling")
    FILE_UNREADABLE = _Text(500, "a file cannot be read", "check its path, owner and mode")
    FILE_MODE_UNSAFE = _Text(500, "a secret's file can be read by others", "chmod 600 it")
    IN_USE = _Text(409, "another process has this open", "stop the other process first")
    STORAGE_FAILED = _Text(503, "the database did not do what was asked", "check disk space and the database's log")
    HOT_STATE_UNAVAILABLE = _Text(
        503, "what is remembered for a short time cannot be reached", "check the Redis server of [hotstate]"
    )
    HOT_STATE_UNSAFE = _Text(
        503, "the Redis server may forget before it is time", "see docs/operations.md, Redis for more than one gateway"
    )
    AUDIT_FAILED = _Text(
        503, "the audit log could not be written, so nothing was done", "free disk space for the audit log"
    )
    AUDIT_TAMPERED = _Text(
        500, "the audit log does not verify", "treat the machine as breached; compare with an exported root"
    )

    # --- Enrolment ----------------------------------------------------------------------------------------------
    ENROLMENT_REFUSED = _Text(403, "the enrolment is refused", "ask an operator; the audit log has the exact reason")
    ENROLMENT_RATE_LIMITED = _Text(429, "too many enrolments from here", "try again later")
    TOKEN_UNKNOWN = _Text(403, "the enrolment token is not known", "ask for a new token")
    TOKEN_EXPIRED = _Text(403, "the enrolment token has expired", "ask for a new token")
    TOKEN_USED = _Text(403, "the enrolment token was used", "ask for a new token")
    TOKEN_BOUND_ELSEWHERE = _Text(403, "the enrolment token belongs to another TPM", "ask for a token for this node")
    TOKEN_MALFORMED = _Text(400, "the enrolment token is not one", "copy the token whole")
    TPM_STRUCTURE_MALFORMED = _Text(400, "a TPM structure does not parse", "send the structure as the TPM made it")
    TPM_TRAILING_BYTES = _Text(400, "bytes are left over after a TPM structure", "send the structure alone")
    TPM_ALGORITHM_REFUSED = _Text(
        400,
        "an algorithm or key size is not allowed",
        "use ECC P-256, P-384 or RSA 2048 and more, with SHA-256 or better",
    )
    EK_MISMATCH = _Text(
        403,
        "the EK's public area is not the one in its certificate",
        "send the EK that belongs to the certificate",
    )
    EK_TEMPLATE_REFUSED = _Text(
        403,
        "the EK does not follow an allowed template",
        "make the EK by a TCG template (L-1, L-2, H-1 … H-3)",
    )
    EK_CERTIFICATE_MALFORMED = _Text(
        400,
        "the EK certificate is not strict DER or has bytes left over",
        "strip padding after reading it from NV",
    )
    EK_CERTIFICATE_PROFILE = _Text(403, "the EK certificate does not follow the TCG profile", "check with the maker")
    EK_CERTIFICATE_EXTENSION = _Text(
        403, "the EK certificate has an unknown critical extension", "check with the maker"
    )
    EK_CHAIN_UNTRUSTED = _Text(
        403,
        "the EK certificate does not chain to a pinned maker's root",
        "add the maker's root to the settings",
    )
    EK_CERTIFICATE_EXPIRED = _Text(
        403, "the EK certificate is outside its validity", "check the clock and the maker's certificate"
    )
    EK_CERTIFICATE_MISSING = _Text(
        403, "there is no EK certificate", "provision one, or have the settings name this node's class"
    )
    WEAK_KEY = _Text(403, "a key is known to be weak", "replace the TPM or its firmware, then make new keys")
    TPM_CLASS_REFUSED = _Text(403, "this class of TPM is not accepted here", "use a hardware TPM")
    INVENTORY_UNKNOWN = _Text(403, "the node is not in the inventory", "add it, or hand it a token")
    INVENTORY_STATE = _Text(403, "the node's state forbids this", "an operator changes the state")
    EK_CHANGED = _Text(403, "this node's name belongs to another TPM", "remove the node first if its board was changed")
    EK_TAKEN = _Text(403, "this TPM belongs to another node", "one TPM is one node: use its name")
    AK_ATTRIBUTE = _Text(
        403,
        "the AK's attributes are not those of an attestation key",
        "create it restricted, signing, fixed to this TPM",
    )
    AK_HIERARCHY = _Text(403, "the AK is not in the endorsement hierarchy", "create it under the endorsement hierarchy")
    TLS_KEY_ATTRIBUTE = _Text(
        403, "the TLS key's attributes are wrong", "create it signing, unrestricted, fixed to this TPM"
    )
    SESSION_UNKNOWN = _Text(403, "the enrolment session is unknown, used or over", "begin again")
    SERVER_KEY_CHANGED = _Text(409, "another key of the authority answers than the one that began", "begin again")
    PROOF_WRONG = _Text(
        403, "the credential was not activated by this TPM", "begin again on the TPM that holds EK and AK"
    )
    ATTEST_MAGIC = _Text(403, "the attested structure was not made inside a TPM", "use a restricted key")
    ATTEST_TYPE = _Text(
        403, "the attested structure is of another type", "send the certify as certify and the quote as quote"
    )
    ATTEST_SIGNATURE = _Text(403, "the AK's signature does not verify", "sign with the enrolled AK by its own scheme")
    ATTEST_NONCE = _Text(403, "the qualifying data is not of this session", "use this session's nonce")
    ATTEST_NAME = _Text(403, "the certified name is not that of the TLS key", "certify the key that was sent")
    ATTEST_SIGNER = _Text(403, "the qualified signer is not the AK", "sign with the enrolled AK")
    QUOTE_SELECTION = _Text(403, "the quote covers other PCRs than asked", "quote the asked bank and PCRs")
    QUOTE_DIGEST = _Text(403, "the PCR values are not those quoted", "read and quote again: a PCR moved in between")
    QUOTE_COUNTERS = _Text(403, "the TPM was reset between the structures", "begin again")
    CLOCK_REGRESSED = _Text(403, "the TPM's counters went back", "treat the node as cloned or rolled back")
    EVENT_LOG_MALFORMED = _Text(400, "the event log does not parse", "send the firmware's log unchanged")
    EVENT_LOG_MISMATCH = _Text(
        403, "the event log does not replay to the quoted PCRs", "send the firmware's log unchanged"
    )
    REFERENCE_MISSING = _Text(403, "there are no reference values for this node's class", "add reference values")
    REFERENCE_MISMATCH = _Text(
        403,
        "a measured value is not among the reference values",
        "check the firmware; add the value if it is meant",
    )
    MEASUREMENTS_MALFORMED = _Text(
        400, "the runtime measurement log does not parse", "send the kernel's binary log, made with ima_hash=sha256"
    )
    MEASUREMENTS_MISMATCH = _Text(
        403, "the runtime measurements do not replay to the quoted PCR 10", "send the log whole, then quote again"
    )
    MEASUREMENT_UNKNOWN = _Text(
        403,
        "something ran that is not among the reference values",
        "inspect the node; add the file's digest if it is meant",
    )
    EVIDENCE_INCOMPLETE = _Text(
        403,
        "the logs that explain the quote are needed whole",
        "send event log and runtime measurements from the start",
    )
    CSR_MALFORMED = _Text(400, "the certificate request does not parse or its signature fails", "make it anew")
    CSR_KEY_MISMATCH = _Text(
        403,
        "the certificate request's key is not the certified one",
        "make the request with the key in the TPM",
    )
    EVIDENCE_MALFORMED = _Text(400, "the evidence does not follow its schema", "see docs/protocol.md")
    ATTESTATION_REQUIRED = _Text(403, "enrolment without a TPM is not allowed here", "enrol with a TPM")
    ATTESTATION_LATCHED = _Text(
        403, "an earlier attestation of this node failed", "an operator clears the failure after inspection"
    )
    CLONE_SUSPECTED = _Text(403, "the certificate offered is not the newest of this node", "treat the node as cloned")

    # --- Issuing ------------------------------------------------------------------------------------------------
    PROFILE_REFUSED = _Text(
        403, "the profile refuses this certificate", "ask for a lifetime and name the profile allows"
    )
    LINT_FAILED = _Text(500, "the certificate to be signed breaks a rule", "report this: nothing was signed")
    SERIAL_CONFLICT = _Text(500, "the serial is taken", "try again")
    ISSUER_WITHDRAWN = _Text(503, "the issuing CA was withdrawn", "put a new issuing CA in place")
    SIGNER_FAILED = _Text(503, "the signing key cannot be used", "check the key file and its passphrase")

    # --- Policy's life ------------------------------------------------------------------------------------------
    POLICY_COMPILE = _Text(400, "the policy does not compile", "mend it at the file and line given")
    POLICY_BOMB = _Text(400, "the policy exceeds a limit of time, memory, size or nesting", "make it smaller")
    POLICY_BUILTIN = _Text(400, "the policy uses a builtin that is not allowed", "use those in capabilities.json")
    POLICY_TEST_FAILED = _Text(400, "a policy test fails", "mend the policy or the test")
    POLICY_DATA_INVALID = _Text(400, "a route, grant or segment is not valid", "mend it at the file and line given")
    REVISION_SIGNATURE = _Text(403, "the revision's signature does not verify", "publish with the policy signing key")
    REVISION_DOWNGRADE = _Text(409, "the revision is older than one already seen", "publish a higher number")
    REVISION_MALFORMED = _Text(400, "the revision is not one", "build it with `sallyport policy build`")

    # --- The agent ----------------------------------------------------------------------------------------------
    TPM_UNAVAILABLE = _Text(500, "the TPM cannot be used", "check the device and its permissions")
    SERVER_UNTRUSTED = _Text(
        500, "the server does not chain to the pinned root", "do not go on; check address and token"
    )
    SERVER_UNREACHABLE = _Text(
        503, "the server cannot be reached, or did not answer", "check address, port and network; run it again"
    )
    FIREWALL_UNAVAILABLE = _Text(
        500, "the node's firewall cannot be set or read", "install nftables, and run as root or with CAP_NET_ADMIN"
    )
    FIREWALL_REFUSED = _Text(
        500, "the kernel does not take the firewall's rules", "check that it has nf_tables with sets and conntrack"
    )
    FIREWALL_NETWORK = _Text(
        400, "the firewall was given what is no network of nodes", "mend `networks` in segments.yaml, or the settings"
    )
    NOT_ENROLLED = _Text(500, "this node is not enrolled", "run `sallyport node enrol`")
    BUNDLE_SEALED = _Text(
        500,
        "what this node keeps was sealed by another TPM, or in another boot state",
        "nothing, after an update of firmware or boot loader: the authority gives it anew; otherwise inspect the node",
    )
    BUNDLE_MISSING = _Text(
        503, "this node has no bundle to decide by", "restore the link to the authority: the node fetches one"
    )
    SERVICE_NOT_OFFERED = _Text(
        403,
        "the target node does not offer this service on this route",
        "name the service in the node's settings, and the route's service in routes.yaml",
    )
    TLS_KEY_UNUSABLE = _Text(500, "the key in the TPM cannot be used for TLS here", "see `sallyport doctor`")

    EXTRA_MISSING = _Text(
        500, "a package that this command needs is not installed", "install the extra that the message names"
    )
    INTERNAL = _Text(500, "something went wrong on our side", "report it with the id in the response")

    def __init__(self, status: int, meaning: str, remedy: str) -> None:
        """`code` is the stable name used in responses, logs, metrics and policies; `status` the HTTP status (RFC 9110
        §15) that goes outward with it."""
        self.code = self._name_.lower()
        self.status = status
        self.meaning = meaning
        self.remedy = remedy

    @classmethod
    def from_code(cls, code: str) -> Reason:
        """The reason of this code. Raises `KeyError` when the vocabulary has none."""
        return _BY_CODE[code]


_BY_CODE = {reason.code: reason for reason in Reason}
