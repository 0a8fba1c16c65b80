"""The node's TPM 2.0, behind one worker thread.

An ESAPI context shared by threads breaks, so one thread owns it; callers wait for its answer and get bytes. Every
method blocks its caller (2 ms with an emulator, up to seconds with hardware): call them off the event loop.

The signing key in use stays loaded between signatures; any other command unloads it first, since a TPM without resource
manager has three places for objects. A signature that fails is tried once more on a fresh connection: a TPM that was
reset has forgotten what was loaded.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from agent.tpm_values import Attested, EndorsementKey, SealedSecret, TlsKeyFile
from foundation.faults import Fault
from foundation.reasons import Reason
from foundation.wire.enrolment import PcrSelection

try:
    from tpm2_pytss import ESAPI, TSS2_Exception

    from agent import tpm_commands, tpm_sealing
except (ImportError, OSError):  # tpm2-pytss is an extra: a node without a TPM does without
    tpm_commands = None  # type: ignore[assignment]

T = TypeVar("T")
_ANSWER_SECONDS = 90.0  # a discrete TPM may take tens of seconds for an RSA key


class Tpm:
    """An open TPM. `tcti` says where it is, as tpm2-tools' `-T` takes it: `device:/dev/tpmrm0`,
    `swtpm:host=127.0.0.1,port=2321`. Every method raises `Fault(TPM_UNAVAILABLE)` when the TPM does not do its part."""

    def __init__(self, tcti: str) -> None:
        if tpm_commands is None:
            raise Fault(Reason.TPM_UNAVAILABLE, "tpm2-pytss is missing: install `sallyport[agent]` and libtss2")
        # libtss2 would write its own warnings to standard error; what it means reaches us as an exception.
        os.environ.setdefault("TSS2_LOG", "all+NONE")
        self._tcti = tcti
        self._esapi: Any = None
        self._loaded: tuple[TlsKeyFile, Any] | None = None
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        # A daemon: a TPM that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._serve, name="tpm", daemon=True)
        self._thread.start()
        self._do(self._connect)

    def endorsement_key(self, template: str = "") -> EndorsementKey:
        """The EK of this template (see `agent.tpm_values.EK_TEMPLATES`), or the first with a certificate. Raises
        `Fault(EK_CERTIFICATE_MISSING)`."""
        return self._command(lambda: tpm_commands.read_endorsement_key(self._esapi, template))

    def attestation_key(self) -> bytes:
        """The AK's TPMT_PUBLIC: the same at every call and boot, until the endorsement seed changes."""
        return self._command(lambda: tpm_commands.read_attestation_key(self._esapi))

    def create_tls_key(self) -> TlsKeyFile:
        """A new TLS key: signing, unrestricted, fixed to this TPM."""
        return self._command(lambda: tpm_commands.create_tls_key(self._esapi))

    def read_tls_key(self, pem: bytes) -> TlsKeyFile:
        """The key of a stored key file. Raises `Fault(TLS_KEY_UNUSABLE)`."""
        return self._command(lambda: tpm_commands.read_tls_key(pem))

    def certify(self, key: TlsKeyFile, qualifying: bytes) -> Attested:
        """The AK's TPM2_Certify of `key`."""
        return self._command(lambda: tpm_commands.certify(self._esapi, key, qualifying))

    def quote(self, selection: PcrSelection, qualifying: bytes) -> tuple[Attested, tuple[bytes, ...]]:
        """The AK's TPM2_Quote, and the values of the PCRs in the order of `selection`."""
        return self._command(lambda: tpm_commands.quote(self._esapi, selection, qualifying))

    def activate(self, template: str, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """The secret inside a credential that was made for the EK of `template` and our AK."""
        return self._command(lambda: tpm_commands.activate(self._esapi, template, credential_blob, encrypted_secret))

    def sign(self, key: TlsKeyFile, digest: bytes) -> bytes:
        """A TPMT_SIGNATURE by `key` over a SHA-256 digest."""
        return self._do(lambda: self._connected(lambda: self._sign(key, digest)))

    def seal(self, selection: PcrSelection, secret: bytes) -> SealedSecret:
        """`secret` (at most `MAX_SEALED_BYTES`), sealed to what the PCRs of `selection` hold now."""
        return self._command(lambda: tpm_sealing.seal(self._esapi, selection, secret))

    def unseal(self, selection: PcrSelection, sealed: SealedSecret) -> bytes:
        """The secret again. Raises `Fault(BUNDLE_SEALED)` by another TPM, or when the PCRs hold something else."""
        return self._command(lambda: tpm_sealing.unseal(self._esapi, selection, sealed))

    def close(self) -> None:
        """Unload and disconnect. A closed TPM refuses everything."""
        if self._thread.is_alive():
            self._do(self._disconnect)
            self._work.put(None)
            self._thread.join(timeout=_ANSWER_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- on the worker thread ---

    def _serve(self) -> None:
        while item := self._work.get():
            work, answer = item
            try:
                answer.set_result(work())
            except BaseException as error:  # whatever it is belongs to the caller
                answer.set_exception(self._as_fault(error))

    def _connect(self) -> None:
        self._esapi = ESAPI(self._tcti)
        tpm_commands.flush_leftovers(self._esapi)

    def _disconnect(self) -> None:
        if self._esapi:
            with contextlib.suppress(TSS2_Exception):  # it goes either way
                self._unload()
        self._drop()

    def _drop(self) -> None:
        self._loaded = None
        esapi, self._esapi = self._esapi, None
        if esapi:
            esapi.close()

    def _connected(self, work: Callable[[], T]) -> T:
        """A connection that failed is given up, so that the next call finds the TPM again when it is back."""
        if not self._esapi:
            self._connect()
        try:
            return work()
        except TSS2_Exception as error:
            if not tpm_commands.is_answer(error):
                self._drop()
            raise

    def _unload(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded:
            self._esapi.flush_context(loaded[1])

    def _sign(self, key: TlsKeyFile, digest: bytes) -> bytes:
        try:
            return self._sign_once(key, digest)
        except TSS2_Exception:
            self._drop()
            self._connect()
            return self._sign_once(key, digest)

    def _sign_once(self, key: TlsKeyFile, digest: bytes) -> bytes:
        if not self._loaded or self._loaded[0] != key:
            self._unload()
            self._loaded = (key, tpm_commands.load_tls_key(self._esapi, key))
        return tpm_commands.sign(self._esapi, self._loaded[1], digest)

    # --- on the caller's thread ---

    def _command(self, work: Callable[[], T]) -> T:
        def unloaded() -> T:
            self._unload()
            return work()

        return self._do(lambda: self._connected(unloaded))

    def _do(self, work: Callable[[], T]) -> T:
        if not self._thread.is_alive():
            raise Fault(Reason.TPM_UNAVAILABLE, "it is closed", field="tcti")
        answer: Future[T] = Future()
        self._work.put((work, answer))
        try:
            return answer.result(_ANSWER_SECONDS)
        except TimeoutError:
            raise Fault(Reason.TPM_UNAVAILABLE, f"no answer in {_ANSWER_SECONDS:.0f} s", field="tcti") from None

    def _as_fault(self, error: BaseException) -> BaseException:
        if isinstance(error, TSS2_Exception):
            return Fault(Reason.TPM_UNAVAILABLE, str(error), field="tcti")
        return error
