"""Options of the kafka-python clients, derived from the settings."""

from typing import Any

from consumers.settings import KafkaSettings


def options(kafka: KafkaSettings) -> dict[str, Any]:
    """Return the keyword arguments of every client of this broker: TLS, SASL and `options`."""
    chosen: dict[str, Any] = {
        "client_id": kafka.client_id,
        "request_timeout_ms": kafka.request_timeout_ms,
        "security_protocol": kafka.security_protocol,
    }
    if kafka.security_protocol.endswith("SSL"):
        chosen["ssl_check_hostname"] = kafka.ssl_check_hostname
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_password"):
            if getattr(kafka, name):
                chosen[name] = getattr(kafka, name)
    if kafka.security_protocol.startswith("SASL"):
        chosen["sasl_mechanism"] = kafka.sasl_mechanism
        chosen["sasl_plain_username"] = kafka.sasl_plain_username
        chosen["sasl_plain_password"] = kafka.sasl_plain_password
    return chosen | kafka.options
