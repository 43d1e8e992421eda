"""Retrieval: pages of the vault are cut into chunks, embedded, stored, and quoted in answers.

    vault -> split -> models (embed) -> store        service.Rag keeps the store equal to the vault
    question -> models (embed) -> store -> models    api serves it, cli asks it

Importing this package opens nothing and reads no environment.
"""
