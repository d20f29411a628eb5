//! The store in a file: SQLite, one directory per control plane.
//!
//! Three tables keyed by node, a JSON document each: the documents are the contract's own words, so a person can read
//! them with any SQLite client, and a new optional field needs no migration.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Error, ErrorCode, OptionalExtension, Transaction, params};
use serde::de::DeserializeOwned;

use crate::registry::Restored;
use crate::types::NodeId;

use super::{Loaded, Store, StoreError, Write};

/// The schema this version reads and writes (`PRAGMA user_version`).
const SCHEMA: i64 = 2;
const TABLES: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
    INSERT INTO meta VALUES ('revision', 0);
    CREATE TABLE nodes (node_id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
    CREATE TABLE drains (node_id TEXT PRIMARY KEY, drain TEXT NOT NULL) STRICT;
    CREATE TABLE observed (node_id TEXT PRIMARY KEY, observed TEXT NOT NULL) STRICT;
    PRAGMA user_version = 2;
";
/// What schema 1, of builds before the first release, had in columns, as the document it is now.
const OBSERVED_1: &str = "
    json_object(
        'beaten', json(iif(beaten, 'true', 'false')), 'offline', json(iif(offline, 'true', 'false')), 'pools', json(pools)
    )";

/// A store in `orchd.db` of a directory that it holds alone.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    /// The schema of the file as it was found.
    schema: i64,
    /// Which file it was then.
    identity: Option<(u64, u64)>,
    /// Told to leave the file as it is on closing, until it is understood.
    connection: Connection,
    /// Held for as long as the store lives; the system gives it back when the process ends, however it ends.
    _lock: File,
}

impl SqliteStore {
    /// Opens the store of a directory, which is made if it is not there.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is changed in a file that is damaged or newer.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let in_directory = |source| StoreError::Directory {
            path: directory.to_owned(),
            source,
        };
        fs::create_dir_all(directory).map_err(in_directory)?;
        let lock = hold(directory)?;
        let path = directory.join("orchd.db");
        refuse_lone_log(&path)?;
        let trouble = |e| trouble(&path, e);
        let connection = Connection::open(&path).map_err(trouble)?;
        // Until it is understood, nothing is to move from its log into the file; see `load`.
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(trouble)?;
        // FULL: what was acknowledged survives a power cut, too.
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(trouble)?;
        let found: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(trouble)?;
        if found > SCHEMA {
            return Err(StoreError::Newer {
                path,
                found,
                known: SCHEMA,
            });
        }
        let damaged = |detail: String| StoreError::Damaged {
            path: path.clone(),
            detail,
        };
        if found < 0 {
            return Err(damaged(format!("no orchd has written a schema {found}")));
        }
        let verdict: String = connection
            .pragma_query_value(None, "quick_check", |row| row.get(0))
            .map_err(trouble)?;
        if verdict != "ok" {
            // It has several lines.
            return Err(damaged(verdict.replace('\n', " ")));
        }
        if found == 0 {
            let tables: i64 = connection
                .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
                .map_err(trouble)?;
            if tables > 0 {
                return Err(damaged("it holds tables of another program".to_owned()));
            }
            connection
                .execute_batch(&format!("BEGIN; {TABLES} COMMIT;"))
                .map_err(trouble)?;
        }
        Ok(Self {
            identity: identity(&path),
            path,
            schema: if found == 0 { SCHEMA } else { found },
            connection,
            _lock: lock,
        })
    }

    fn parse<T: DeserializeOwned>(
        &self,
        what: &str,
        node_id: &str,
        text: &str,
    ) -> Result<T, StoreError> {
        serde_json::from_str(text).map_err(|e| StoreError::Damaged {
            path: self.path.clone(),
            detail: format!("the {what} of {node_id:?} does not parse: {e}"),
        })
    }

    fn rows<T>(
        &self,
        query: &str,
        read: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let trouble = |e| trouble(&self.path, e);
        let mut statement = self.connection.prepare(query).map_err(trouble)?;
        let rows = statement.query_map([], |row| read(row)).map_err(trouble)?;
        rows.collect::<Result<_, _>>().map_err(trouble)
    }

    /// What is in the file is known to be ours: from here on its log is kept, and emptied into it, as usual, and it has
    /// this version's schema.
    fn understood(&mut self) -> rusqlite::Result<()> {
        self.connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        self.connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        if self.schema == 1 {
            let transaction = self.connection.transaction()?;
            transaction.execute_batch(&format!(
                "ALTER TABLE observed RENAME TO observed_1;
                 CREATE TABLE observed (node_id TEXT PRIMARY KEY, observed TEXT NOT NULL) STRICT;
                 INSERT INTO observed SELECT node_id, {OBSERVED_1} FROM observed_1;
                 DROP TABLE observed_1;
                 PRAGMA user_version = {SCHEMA};"
            ))?;
            transaction.commit()?;
            self.schema = SCHEMA;
        }
        Ok(())
    }
}

/// A log without the file it belongs to is thrown away by SQLite, and with it everything that was only there.
fn refuse_lone_log(path: &Path) -> Result<(), StoreError> {
    let length = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let log = path.with_extension("db-wal");
    if length(path) == 0 && length(&log) > 0 {
        return Err(StoreError::Damaged {
            path: path.to_owned(),
            detail: format!(
                "it holds nothing, and the log beside it, {}, does",
                log.display()
            ),
        });
    }
    Ok(())
}

/// Which file a path names at this moment; `None` for none.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// What a failure of SQLite says of the file that is being opened.
fn trouble(path: &Path, source: Error) -> StoreError {
    let path = path.to_owned();
    let medium = matches!(
        source.sqlite_error_code(),
        Some(
            ErrorCode::CannotOpen
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::DiskFull
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::OutOfMemory
                | ErrorCode::PermissionDenied
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure
        )
    );
    if medium {
        StoreError::Unusable { path, source }
    } else {
        // Not a database, a page that makes no sense, a table or a column that should be there.
        let detail = source.to_string().replace('\n', " ");
        StoreError::Damaged { path, detail }
    }
}

/// Takes the directory for this process, or says who has it.
fn hold(directory: &Path) -> Result<File, StoreError> {
    let in_directory = |source| StoreError::Directory {
        path: directory.to_owned(),
        source,
    };
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(directory.join("lock"))
        .map_err(in_directory)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // The lock tells that somebody has it; the text only helps to find out who.
            let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if known {
                holder.trim().to_owned()
            } else {
                "another process".to_owned()
            };
            return Err(StoreError::Held {
                path: directory.to_owned(),
                holder,
            });
        }
        Err(TryLockError::Error(e)) => return Err(in_directory(e)),
    }
    file.set_len(0).map_err(in_directory)?;
    file.rewind().map_err(in_directory)?;
    writeln!(file, "orchd serve, process {}", std::process::id()).map_err(in_directory)?;
    Ok(file)
}

impl Store for SqliteStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let revision = revision(&self.connection)
            .map_err(|e| trouble(&self.path, e))?
            .ok_or_else(|| StoreError::Damaged {
                path: self.path.clone(),
                detail: "it has no revision".to_owned(),
            })?;
        let observed = if self.schema == 1 {
            format!("(SELECT node_id, {OBSERVED_1} AS observed FROM observed)")
        } else {
            "observed".to_owned()
        };
        let rows = self.rows(
            &format!(
                "SELECT node_id, record, drain, observed
                 FROM nodes LEFT JOIN drains USING (node_id) LEFT JOIN {observed} USING (node_id)"
            ),
            |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, Option<String>>(2)?,
                    row.get::<_, Option<String>>(3)?,
                ))
            },
        )?;
        let mut nodes = Vec::with_capacity(rows.len());
        for (name, record, drain, observed) in rows {
            let node_id = NodeId::new(&name).map_err(|e| StoreError::Damaged {
                path: self.path.clone(),
                detail: format!("the node id {name:?} {e}"),
            })?;
            nodes.push(Restored {
                node_id,
                record: self.parse("registration", &name, &record)?,
                drain: drain
                    .map(|text| self.parse("drain", &name, &text))
                    .transpose()?,
                observed: observed
                    .map(|text| self.parse("observed state", &name, &text))
                    .transpose()?
                    .unwrap_or_default(),
            });
        }
        self.understood().map_err(|e| trouble(&self.path, e))?;
        Ok(Loaded { revision, nodes })
    }

    fn apply(&mut self, batch: &[Write], expected_revision: u64) -> Result<u64, StoreError> {
        if identity(&self.path) != self.identity {
            // What is written goes to a file that nobody will find again.
            return Err(StoreError::Gone {
                path: self.path.clone(),
            });
        }
        let transaction = self
            .connection
            .transaction()
            .map_err(StoreError::Unwritable)?;
        let found = revision(&transaction)
            .map_err(StoreError::Unwritable)?
            .unwrap_or(0);
        if found != expected_revision {
            return Err(StoreError::Conflict {
                expected: expected_revision,
                found,
            });
        }
        for write in batch {
            put(&transaction, write).map_err(StoreError::Unwritable)?;
        }
        let next = found + 1;
        transaction
            .prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'revision'")
            .and_then(|mut update| update.execute(params![next.cast_signed()]))
            .map_err(StoreError::Unwritable)?;
        transaction.commit().map_err(StoreError::Unwritable)?;
        Ok(next)
    }
}

/// `None` when the file has none, which is not ours then.
fn revision(connection: &Connection) -> rusqlite::Result<Option<u64>> {
    let query = "SELECT value FROM meta WHERE key = 'revision'";
    connection
        .prepare_cached(query)?
        .query_row([], |row| row.get(0))
        .optional()
        .map(|value: Option<i64>| value.map(i64::cast_unsigned))
}

fn put(transaction: &Transaction<'_>, write: &Write) -> rusqlite::Result<usize> {
    let json = |value: serde_json::Result<String>| value.expect("our own types always serialise");
    let run = |sql: &str, params: &[&dyn rusqlite::ToSql]| {
        transaction.prepare_cached(sql)?.execute(params)
    };
    match write {
        Write::Record(id, Some(record)) => run(
            "INSERT INTO nodes VALUES (?1, ?2) ON CONFLICT (node_id) DO UPDATE SET record = excluded.record",
            &[&id.as_str(), &json(serde_json::to_string(record))],
        ),
        Write::Record(id, None) => run("DELETE FROM nodes WHERE node_id = ?1", &[&id.as_str()]),
        Write::Drain(id, Some(drain)) => run(
            "INSERT INTO drains VALUES (?1, ?2) ON CONFLICT (node_id) DO UPDATE SET drain = excluded.drain",
            &[&id.as_str(), &json(serde_json::to_string(drain))],
        ),
        Write::Drain(id, None) => run("DELETE FROM drains WHERE node_id = ?1", &[&id.as_str()]),
        Write::Observed(id, Some(o)) => run(
            "INSERT INTO observed VALUES (?1, ?2) ON CONFLICT (node_id) DO UPDATE SET observed = excluded.observed",
            &[&id.as_str(), &json(serde_json::to_string(o))],
        ),
        Write::Observed(id, None) => {
            run("DELETE FROM observed WHERE node_id = ?1", &[&id.as_str()])
        }
    }
}
