CREATE TABLE IF NOT EXISTS people (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL CHECK (role IN ('admin', 'member', 'guest')),
    password TEXT,
    created REAL NOT NULL,
    last_sign_in REAL,
    disabled REAL,
    removed REAL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions (
    digest BLOB PRIMARY KEY,
    person TEXT NOT NULL REFERENCES people (name),
    created REAL NOT NULL,
    used REAL NOT NULL,
    confirmed REAL NOT NULL,
    address TEXT NOT NULL,
    browser TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sessions_of_person ON sessions (person);
CREATE TABLE IF NOT EXISTS invitations (
    digest BLOB PRIMARY KEY,
    role TEXT NOT NULL CHECK (role IN ('admin', 'member', 'guest')),
    person TEXT REFERENCES people (name),
    invited_by TEXT NOT NULL,
    created REAL NOT NULL,
    expires REAL NOT NULL,
    used REAL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS identities (
    provider TEXT NOT NULL,
    subject TEXT NOT NULL,
    person TEXT NOT NULL REFERENCES people (name),
    unlinked REAL,
    PRIMARY KEY (provider, subject)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS listed_names (
    name TEXT PRIMARY KEY,
    subject TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS access_tokens (
    digest BLOB PRIMARY KEY,
    person TEXT NOT NULL REFERENCES people (name),
    name TEXT NOT NULL,
    scopes TEXT NOT NULL,
    created REAL NOT NULL,
    used REAL NOT NULL,
    UNIQUE (person, name)
) STRICT, WITHOUT ROWID;
