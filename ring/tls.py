"""Mutual TLS between the nodes of a cluster, without a certificate to look after.

The certificate authority's key is derived from the cluster secret, so every node makes the same
authority for itself and signs its own certificate with it at each start. Who shows a certificate of
this authority knows the secret; the name in it is the node's id, so nobody is taken for another
node by its address. Certificates are valid at all times: no clock decides who belongs (a secret is
revoked by changing it).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ring.identity import ClusterIdentity
from ring.members import NodeId

MEMBER_SERVER_NAME = "member.holdfast"
"""A name in every node's certificate besides its id, for protocols that prove the id themselves."""

_VALID_FROM = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_VALID_UNTIL = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
"""RFC 5280 §4.1.2.5: a certificate with no well-defined end."""


def server_context(identity: ClusterIdentity) -> ssl.SSLContext:
    """TLS 1.3 for a node's listener; clients must be nodes of the cluster."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    _equip(context, identity)
    return context


def client_context(identity: ClusterIdentity) -> ssl.SSLContext:
    """TLS 1.3 towards other nodes; `server_hostname` is the id of the node that is meant."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _equip(context, identity)
    return context


def peer_node_id(certificate: Mapping[str, Any] | None) -> NodeId | None:
    """The node that showed a certificate, in the form of `SSLSocket.getpeercert`."""
    for kind, name in (certificate or {}).get("subjectAltName", ()):
        if kind == "DNS" and name != MEMBER_SERVER_NAME:
            return str(name)
    return None


def _equip(context: ssl.SSLContext, identity: ClusterIdentity) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    authority = Ed25519PrivateKey.from_private_bytes(identity.authority_seed())
    key = Ed25519PrivateKey.generate()
    certificate = _node_certificate(authority, key.public_key(), identity)
    context.load_verify_locations(cadata=_authority_certificate(authority, identity))
    chain = certificate.public_bytes(Encoding.PEM) + key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    with _in_memory(chain) as path:
        context.load_cert_chain(path)


def _authority_certificate(authority: Ed25519PrivateKey, identity: ClusterIdentity) -> str:
    builder = (
        _builder(_authority_name(identity), authority.public_key(), authority.public_key())
        .issuer_name(_authority_name(identity))
        .serial_number(1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
    )
    return builder.sign(authority, None).public_bytes(Encoding.PEM).decode()


def _node_certificate(
    authority: Ed25519PrivateKey, key: Ed25519PublicKey, identity: ClusterIdentity
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.node_id)])
    names = [x509.DNSName(identity.node_id), x509.DNSName(MEMBER_SERVER_NAME)]
    roles = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(name, key, authority.public_key())
        .issuer_name(_authority_name(identity))
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(roles), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    return builder.sign(authority, None)


def _builder(
    subject: x509.Name, key: Ed25519PublicKey, authority: Ed25519PublicKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_UNTIL)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False
        )
    )


def _authority_name(identity: ClusterIdentity) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Holdfast"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"cluster {identity.cluster_id}"),
        ]
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@contextlib.contextmanager
def _in_memory(contents: bytes) -> Iterator[str]:
    """A path to bytes that never touch a disk: `ssl` takes keys from files only."""
    descriptor = os.memfd_create("holdfast-tls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, contents)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
