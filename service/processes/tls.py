"""TLS by setting: the certificate and its key, checked before the service listens and whenever they are read again."""

from __future__ import annotations

import ssl
from pathlib import Path

from vaegis.models.errors import Refusal
from vaegis.service.settings import Settings


class Certificate:
    """The certificate that new connections are shown. It is replaced as a whole or not at all."""

    def __init__(self, settings: Settings, context: ssl.SSLContext) -> None:
        """`context`: what `context_of` made of these settings."""
        self._settings, self._current = settings, context
        self.listening = context  # for the server to listen with
        self.listening.sni_callback = self._present  # called for every handshake, whether it names a server or not

    def _present(self, connection: ssl.SSLObject, name: str | None, listening: ssl.SSLContext) -> None:
        connection.context = self._current

    def renew(self) -> None:
        """Reads the files again.

        Raises:
            Refusal: they cannot be used; the certificate before stays in use.
        """
        context = context_of(self._settings)
        if context is not None:
            self._current = context


def context_of(settings: Settings) -> ssl.SSLContext | None:
    """A fresh context with the certificate and its key, or None where the service speaks plain HTTP.

    Raises:
        Refusal: only one is set, one cannot be read, is no PEM of its kind or has a password, or they do not belong
            together.
    """
    cert, key = settings.tls_cert, settings.tls_key
    if not cert and not key:
        return None
    if not cert or not key:
        given, lacking = ("VAEGIS_TLS_CERT", "VAEGIS_TLS_KEY") if cert else ("VAEGIS_TLS_KEY", "VAEGIS_TLS_CERT")
        raise Refusal(f"{given} is set and {lacking} is not; https needs both. Set it, or leave both out for http.")
    texts = [_read(name, path) for name, path in (("VAEGIS_TLS_CERT", cert), ("VAEGIS_TLS_KEY", key))]
    if "-----BEGIN CERTIFICATE-----" not in texts[0]:
        raise Refusal(f"VAEGIS_TLS_CERT names {cert}, which holds no PEM certificate; give the certificate's chain.")
    if "PRIVATE KEY-----" not in texts[1]:
        raise Refusal(f"VAEGIS_TLS_KEY names {key}, which holds no PEM private key; give the certificate's key.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, _no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise Refusal(
                f"The key {key} does not belong to the first certificate of {cert}; give the pair that belongs "
                "together, the service's own certificate first."
            ) from error
        why = (error.reason or "it is damaged").replace("_", " ").lower()
        raise Refusal(f"The certificate {cert} and the key {key} cannot be used: {why}. Make them anew.") from error
    return context


def _read(name: str, path: str) -> str:
    try:
        return Path(path).read_text("latin-1")
    except OSError as error:
        why = f"{name} names {path}, which cannot be read ({error.strerror}); check path and rights."
        raise Refusal(why) from error


def _no_password() -> str:
    raise Refusal(
        "The key that VAEGIS_TLS_KEY names has a password, which a service cannot type; take it off (openssl pkey) and "
        "let only the service read the file."
    )
