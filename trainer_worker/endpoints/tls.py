"""Whom a worker trusts, and what it shows of itself: the files `NOWCAST_TLS_CA`, `NOWCAST_TLS_CERT` and `NOWCAST_TLS_KEY`, PEM."""

import os
import ssl


def verification() -> ssl.SSLContext | bool:
    """What httpx takes as `verify`: the authorities it comes with, or those that the environment names.

    Raises:
        OSError: a file that is named cannot be read, or is no certificate.
    """
    authority, certificate = os.environ.get("NOWCAST_TLS_CA"), os.environ.get("NOWCAST_TLS_CERT")
    if not authority and not certificate:
        return True
    context = ssl.create_default_context(cafile=authority)
    if certificate:
        context.load_cert_chain(certificate, os.environ.get("NOWCAST_TLS_KEY"))
    return context
