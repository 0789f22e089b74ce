//! A JSON Patch (RFC 6902), as the API server takes it.

use serde::Serialize;
use serde_json::{Map, Value};

/// One operation; `path` is a JSON Pointer (RFC 6901).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum PatchOperation {
    /// The whole patch is refused where the value there is another one.
    Test {
        path: String,
        value: Value,
    },
    Add {
        path: String,
        value: Value,
    },
    Replace {
        path: String,
        value: Value,
    },
    Remove {
        path: String,
    },
}

/// The pointer to `key` in the object at `parent`.
pub fn child(parent: &str, key: &str) -> String {
    format!("{parent}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// Adds `items` at the end of the array at `path`, which is `existing` and may be absent or null.
pub fn append(path: &str, existing: Option<&Value>, items: Vec<Value>) -> Vec<PatchOperation> {
    if items.is_empty() {
        return Vec::new();
    }
    match existing {
        None | Some(Value::Null) => {
            vec![PatchOperation::Add { path: path.to_owned(), value: Value::Array(items) }]
        }
        Some(_) => {
            let end = format!("{path}/-");
            items.into_iter().map(|value| PatchOperation::Add { path: end.clone(), value }).collect()
        }
    }
}

/// Sets `entries` in the object at `path`, which is `existing` and may be absent or null.
pub fn set(path: &str, existing: Option<&Value>, entries: Vec<(String, Value)>) -> Vec<PatchOperation> {
    if entries.is_empty() {
        return Vec::new();
    }
    match existing {
        None | Some(Value::Null) => {
            let value = Value::Object(entries.into_iter().collect::<Map<_, _>>());
            vec![PatchOperation::Add { path: path.to_owned(), value }]
        }
        Some(object) => entries
            .into_iter()
            .map(|(key, value)| {
                let path = child(path, &key);
                if object.get(&key).is_some() {
                    PatchOperation::Replace { path, value }
                } else {
                    PatchOperation::Add { path, value }
                }
            })
            .collect(),
    }
}

/// Removes the items at `indices` from the array at `path`; `guard` says by which field and value each is known.
///
/// The last goes first, so that no removal moves one that is still to come.
pub fn remove(path: &str, mut indices: Vec<(usize, (&'static str, Value))>) -> Vec<PatchOperation> {
    indices.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
    indices
        .into_iter()
        .flat_map(|(index, (field, value))| {
            let item = format!("{path}/{index}");
            [PatchOperation::Test { path: child(&item, field), value }, PatchOperation::Remove { path: item }]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(document: Value, patch: Vec<PatchOperation>, expect: Value) {
        let patch: json_patch::Patch = serde_json::from_value(serde_json::to_value(patch).unwrap()).unwrap();
        let mut patched = document;
        json_patch::patch(&mut patched, &patch).unwrap();
        assert_eq!(patched, expect);
    }

    #[test]
    fn keys_are_escaped() {
        assert_eq!(child("/metadata/annotations", "a.b/c~d"), "/metadata/annotations/a.b~1c~0d");
        let entries = vec![("a/b~c".to_owned(), json!("x"))];
        let document = json!({"o": {"k": 1}});
        check(document.clone(), set("/o", document.get("o"), entries), json!({"o": {"k": 1, "a/b~c": "x"}}));
    }

    #[test]
    fn arrays_and_objects_are_made_where_there_are_none() {
        for document in [json!({}), json!({"a": null})] {
            let patch = append("/a", document.get("a"), vec![json!(1), json!(2)]);
            check(document.clone(), patch, json!({"a": [1, 2]}));
            let patch = set("/a", document.get("a"), vec![("k".to_owned(), json!(1))]);
            check(document, patch, json!({"a": {"k": 1}}));
        }
        let document = json!({"a": [0]});
        check(
            document.clone(),
            append("/a", document.get("a"), vec![json!(1), json!(2)]),
            json!({"a": [0, 1, 2]}),
        );
        assert_eq!(append("/a", None, Vec::new()), []);
        assert_eq!(set("/a", None, Vec::new()), []);
    }

    #[test]
    fn removals_do_not_move_each_other_and_are_guarded() {
        let document = json!({"a": [{"n": "0"}, {"n": "1"}, {"n": "2"}]});
        let patch = remove("/a", vec![(0, ("n", json!("0"))), (2, ("n", json!("2")))]);
        check(document, patch, json!({"a": [{"n": "1"}]}));
    }
}
