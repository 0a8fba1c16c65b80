"""The TPM maker whose devices the tests enrol. One implementation serves tests and demonstration."""

from deploy.demo.tpm_maker import EK_CERTIFICATE, TPM_MANUFACTURER, TPM_MODEL, TPM_VERSION, TpmMaker

__all__ = ["EK_CERTIFICATE", "TPM_MANUFACTURER", "TPM_MODEL", "TPM_VERSION", "TpmMaker"]
