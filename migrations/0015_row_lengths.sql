-- How long the rows of datasets are in tokens, as the workers of previews and attempts have counted them.
CREATE TABLE row_lengths (
    dataset TEXT   NOT NULL, -- its digest
    model   TEXT   NOT NULL, -- ModelSource: whose tokenizer has counted
    reading TEXT   NOT NULL, -- JSON: the objective and the columns, by which rows are made of the dataset
    lengths TEXT   NOT NULL, -- RowLengths
    at_ms   BIGINT NOT NULL,
    PRIMARY KEY (dataset, model, reading)
);
