"""Pure verification of TPM 2.0 evidence: values in, values out, no TPM library, no clock, no files."""
