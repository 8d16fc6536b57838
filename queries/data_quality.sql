-- What may be wrong with the records themselves: coverage beside training's, missing numbers and times, one value alone.
--
-- One row a feature, those with findings first: how many patients have it (share_of_patients of all in the cohort, and
-- training_share of the training patients), events per patient, which share of them has no time (share_undated) or no
-- number though the feature has ranges (share_without_number), how many of its known values occur, and the share of the
-- commonest. findings names what stands out. What hidden cells would be needed for is missing.
-- Arguments: difference, of the shares of patients from which on it is a finding; split, class, stratum, run, top,
-- min_patients.
-- Example: whenwhy query STORE data_quality top=5
create or replace temp macro data_quality(
    difference := 0.1, split := 'held_out', class := 'all', stratum := 'all', run := null, top := 1000, min_patients := 11
) as table
with known as (
    select c.*, f.bin, f.feature_value_id is not null as is_value from cells c
    left join feature_values f on c.level = 'value' and f.run_id = c.run_id and f.feature_value_id = c.feature_value_id
    where c.class = class and c.stratum = stratum and c.split = split and c.time_axis = 'before_prediction' and c.level <> 'group'
        and c.run_id = coalesce(run::varchar, (select min(run_id) from runs))
),
words as (
    select f.code, count(*) as n_values_known, count(f.bin) as n_ranges from feature_values f
    where f.run_id = coalesce(run::varchar, (select min(run_id) from runs)) and f.feature_value_id > 0 group by f.code
),
counted as (
    select k.code,
        max(k.n_events) filter (k.level = 'code' and k.time_bin is null) as n_events,
        coalesce(sum(k.n_events) filter (k.level = 'code' and k.time_bin is not null), 0) as n_dated,
        coalesce(sum(k.n_events) filter (k.is_value and k.time_bin is null and k.bin is null), 0) as n_without_number,
        count(*) filter (k.is_value and k.time_bin is null) as n_values,
        sum(k.n_events) filter (k.is_value and k.time_bin is null) as n_of_values,
        max(k.n_events) filter (k.is_value and k.time_bin is null) as n_of_commonest
    from known k group by k.code
),
training as (
    select t.code, t.n_patients / t.n_patients_at_risk as share
    from (
        select e.code, e.n_patients, x.n_patients as n_patients_at_risk
        from estimates_for(run, 'code', null, 'before_prediction', false, 'train', class, stratum, null) e,
            risk_for(run, 'before_prediction', false, 'train', class, stratum, null) x
    ) t
),
told as (
    select e.code, e.description, e.n_patients, e.n_patients / x.n_patients as share_of_patients, t.share as training_share,
        e.n_events / e.n_patients as events_per_patient, case when has_rows() or c.n_dated = c.n_events then 1 - c.n_dated / c.n_events end as share_undated,
        case when w.n_ranges > 0 and c.n_of_values = c.n_events then c.n_without_number / c.n_events end as share_without_number,
        case when c.n_of_values = c.n_events then c.n_values::integer end as n_values,
        w.n_values_known::integer as n_values_known,
        case when c.n_of_values = c.n_events then c.n_of_commonest / c.n_events end as share_of_commonest
    from estimates_for(run, 'code', null, 'before_prediction', false, split, class, stratum, null) e
    join risk_for(run, 'before_prediction', false, split, class, stratum, null) x on true
    join counted c on c.code = e.code
    join words w on w.code = e.code
    left join training t on t.code = e.code
    where e.n_patients >= min_patients::integer
),
judged as (
    select t.*, array_to_string(list_filter([
        case when t.share_of_patients - t.training_share >= difference::double then 'more patients than in training' end,
        case when t.training_share - t.share_of_patients >= difference::double then 'fewer patients than in training' end,
        case when t.share_without_number >= 0.5 then 'mostly without a number' end,
        case when t.share_undated > 0 and t.share_undated < 1 then 'partly without a time' end,
        case when t.n_values_known > 1 and t.share_of_commonest > 0.95 then 'nearly always one value' end
    ], lambda one: one is not null), ', ') as findings
    from told t
)
select j.* from judged j
order by j.findings = '', j.n_patients desc, j.code
limit (select top::integer);
