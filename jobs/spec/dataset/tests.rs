use serde_json::json;

use super::*;

fn read(row: Value) -> Result<Example, RowError> {
    let columns = Columns::default();
    columns.example(columns.detect(&row)?, &row)
}

#[test]
fn pairs_labels_and_choices_are_understood() {
    let said =
        |completion: &str| Box::new(Example::Completion { prompt: "2+2=".into(), completion: completion.to_owned() });
    let pair = json!({"prompt": "2+2=", "chosen": "4", "rejected": "5"});
    assert_eq!(read(pair).unwrap(), Example::Preference { chosen: said("4"), rejected: said("5") });
    let labelled = json!({"prompt": "2+2=", "completion": "5", "label": false});
    assert_eq!(read(labelled).unwrap(), Example::Labelled { example: said("5"), good: false });
    for answer in [json!(1), json!("B"), json!("four")] {
        let row = json!({"question": "2+2", "choices": {"text": ["three", "four"]}, "answer": answer});
        let Example::Choice { answer, .. } = read(row).unwrap() else { panic!() };
        assert_eq!(answer, 1);
    }
    let wrong = read(json!({"question": "q", "choices": ["a", "b"], "answer": 2})).unwrap_err();
    assert_eq!(wrong.to_string(), "column `answer` holds 2, which is none of the 2 choices");
}

#[test]
fn every_usual_form_is_understood() {
    let said = chat("q".into(), "a".into());
    let turns = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    assert_eq!(read(json!({"messages": turns})).unwrap(), said);
    assert_eq!(read(json!({"instruction": "q", "input": "", "output": "a"})).unwrap(), said);
    assert_eq!(read(json!({"instruction": "q", "output": "a"})).unwrap(), said);
    assert_eq!(
        read(json!({"prompt": "q", "completion": "a"})).unwrap(),
        Example::Completion { prompt: "q".into(), completion: "a".into() }
    );
    assert_eq!(
        read(json!({"prompt": [{"role": "user", "content": "q"}],
                    "completion": [{"role": "assistant", "content": "a"}]}))
        .unwrap(),
        said
    );
    assert_eq!(read(json!({"text": "t"})).unwrap(), Example::Text("t".into()));
}

#[test]
fn unknown_columns_come_with_the_mapping_that_would_work() {
    let row = json!({"question": "q", "answer": "a", "id": 1});
    let error = read(row.clone()).unwrap_err().to_string();
    assert!(error.contains(r#"give columns {"prompt": "question", "completion": "answer"}"#), "{error}");
    let columns = Columns { prompt: Some("question".into()), completion: Some("answer".into()), ..Columns::default() };
    let format = columns.detect(&row).unwrap();
    assert_eq!(
        columns.example(format, &row).unwrap(),
        Example::Completion { prompt: "q".into(), completion: "a".into() }
    );
}

#[test]
fn a_chat_without_an_assistant_is_refused() {
    let error = read(json!({"messages": [{"role": "user", "content": "q"}]})).unwrap_err();
    assert!(error.to_string().contains("no assistant turn"), "{error}");
}

#[test]
fn a_wrong_type_is_named() {
    let error = read(json!({"prompt": "q", "completion": 3})).unwrap_err().to_string();
    assert_eq!(error, "column `completion` holds a number, a string is expected");
}

#[test]
fn squad_gives_one_chat_a_question() {
    let document = json!({"data": [{"paragraphs": [{"context": "C", "qas": [
        {"question": "Q", "answers": [{"text": "A", "answer_start": 0}, {"text": "a"}, {"text": "A"}]},
        {"question": "Q2", "is_impossible": true, "answers": []}]}]}]});
    assert_eq!(Columns::default().detect(&document).unwrap(), Format::Squad);
    let questions = squad(&document).unwrap();
    assert_eq!(questions[0].example(), chat("C\n\nQ".into(), "A".into()));
    assert_eq!(questions[0].answers, ["A", "a"], "each of the answers once");
    assert_eq!(questions[1].example(), chat("C\n\nQ2".into(), "unanswerable".into()));
    let broken = json!({"data": [{"paragraphs": [{"context": "C", "qas": [{"question": "Q", "answers": []}]}]}]});
    assert_eq!(squad(&broken).unwrap_err().path, "data[0].paragraphs[0].qas[0]");
}
